#!lua flags=allow-oom
-- ROUTER LEASE: take it, or keep it. One bridge routes; every step of it names this lease.
--   in:  prefix, bridge, token ('' when not held), ttl (ms), offers this bridge remembers (-1: none yet),
--        '1' when it has lost Redis and is back
--   out: token and 'taken' | 'kept', or '' and who holds it; for how long (ms, -1: nobody does); its offers;
--        1 if Redis lost some
-- A lease that lapsed is never kept: in between another may have routed.
-- Before anything is routed again, Redis learns here what it has forgotten.
-- @include lib/keys.lua
-- @include lib/doubt.lua
local FRESH_S = 3
local _, bridge, token, ttl, seen, back = unpack(ARGV)

-- A Redis that has run for a while and knows of no bridge was emptied, or nobody has used it yet. A bridge that
-- has just started cannot tell; one that remembers says so at its next try, within a second: it goes first.
local function may_have_forgotten()
  if seen ~= '-1' or redis.call('EXISTS', key('offers')) == 1 then
    return false
  end
  local info = redis.pcall('INFO', 'server')
  local up_s = type(info) == 'string' and tonumber(info:match('uptime_in_seconds:(%d+)'))
  return up_s and up_s >= FRESH_S
end

local wait = may_have_forgotten()
local offers, lost = count_offers(bridge, seen)
if back == '1' then
  hold()
end
local name = key('lease.router')
local held = redis.call('GET', name)
if held then
  if token ~= '' and held == bridge .. '|' .. token then
    redis.call('PEXPIRE', name, ttl)
    return {token, 'kept', ttl, offers, lost}
  end
  return {'', held, redis.call('PTTL', name), offers, lost}
end
if wait then
  return {'', '', -1, offers, lost}
end
local fence = key('fence.router')
local fresh = int(math.max(tonumber(redis.call('GET', fence) or '0') + 1, now_ms()))
redis.call('SET', fence, fresh)
redis.call('SET', name, bridge .. '|' .. fresh, 'PX', ttl)
return {fresh, 'taken', ttl, offers, lost}
