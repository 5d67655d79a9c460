#!lua flags=allow-oom
-- ROUTER LEASE: take it, or keep it. One bridge routes; every step of it names this lease.
--   in:  prefix, bridge, token ('' when not held), ttl (ms), offers this bridge remembers (-1: none yet)
--   out: token and 'taken' | 'kept', or '' and who holds it; for how long (ms); its offers; 1 if Redis lost some
-- A lease that lapsed is never kept: in between another may have routed.
-- Before anything is routed again, Redis learns here what it has forgotten.
-- @include lib/keys.lua
-- @include lib/doubt.lua
local _, bridge, token, ttl, seen = unpack(ARGV)
local offers, lost = count_offers(bridge, seen, 0)
local name = key('lease.router')
local held = redis.call('GET', name)
if held then
  if token ~= '' and held == bridge .. '|' .. token then
    redis.call('PEXPIRE', name, ttl)
    return {token, 'kept', ttl, offers, lost}
  end
  return {'', held, redis.call('PTTL', name), offers, lost}
end
local fence = key('fence.router')
local fresh = int(math.max(tonumber(redis.call('GET', fence) or '0') + 1, now_ms()))
redis.call('SET', fence, fresh)
redis.call('SET', name, bridge .. '|' .. fresh, 'PX', ttl)
return {fresh, 'taken', ttl, offers, lost}
