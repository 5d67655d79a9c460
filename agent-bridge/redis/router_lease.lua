#!lua flags=allow-oom
-- ROUTER LEASE: take it, or keep it. One bridge routes; every step of it names this lease.
--   in:  prefix, bridge, token ('' when not held), ttl (ms)
--   out: token and 'taken' | 'kept', or '', who holds it and for how long (ms)
-- A lease that lapsed is never kept: in between another may have routed.
-- @include lib/keys.lua
local _, bridge, token, ttl = unpack(ARGV)
local name = key('lease.router')
local held = redis.call('GET', name)
if held then
  if token ~= '' and held == bridge .. '|' .. token then
    redis.call('PEXPIRE', name, ttl)
    return {token, 'kept'}
  end
  return {'', held, redis.call('PTTL', name)}
end
local fence = key('fence.router')
local fresh = int(math.max(tonumber(redis.call('GET', fence) or '0') + 1, now_ms()))
redis.call('SET', fence, fresh)
redis.call('SET', name, bridge .. '|' .. fresh, 'PX', ttl)
return {fresh, 'taken'}
