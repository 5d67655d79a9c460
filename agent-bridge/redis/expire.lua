#!lua
-- EXPIRE: commands whose time is over. Not offered: they end here. Offered, or in doubt: only the agent
-- knows, so its bridge is told to ask it, and again every half minute.
--   in:  prefix, lease text, bridge, now as text, offers this bridge remembers, count
--   out: 'FENCED', or how long until the next deadline (ms, -1: none), how many ended, this bridge's offers, 1 if
--        Redis lost some, then the agents of this bridge to look at
-- @include lib/keys.lua
-- @include lib/hint.lua
-- @include lib/finish.lua
-- @include lib/doubt.lua
local ASK_AGAIN_MS = 30000
local _, lease, bridge, received_at, seen, count = unpack(ARGV)
if redis.call('GET', key('lease.router')) ~= lease then
  return 'FENCED'
end

local now = now_ms()
local offers, lost = count_offers(bridge, seen)
local out = {-1, 0, offers, lost}
if held_ms() > 0 then
  return {held_ms(), 0, offers, lost}
end
for _, cid in ipairs(redis.call('ZRANGE', key('deadlines'), '-inf', int(now), 'BYSCORE', 'LIMIT', 0,
  count)) do
  local agent, entry, state, cancel = unpack(redis.call('HMGET', key('cid.' .. cid), 'agent', 'entry',
    'state', 'cancel'))
  if state == 'queued' and cancel and not in_doubt(entry) then
    finish(cid, agent, entry, bridge_result(cid, agent, 'cancelled', 'cancelled', 'cancelled before it was offered',
      bridge, received_at), 'done')
    out[2] = out[2] + 1
  elseif state == 'queued' and not in_doubt(entry) then
    finish(cid, agent, entry, bridge_result(cid, agent, 'expired', 'expired',
      'its time was over before it could be offered', bridge, received_at), 'done')
    out[2] = out[2] + 1
  elseif state == 'queued' or state == 'offered' then
    redis.call('ZADD', key('deadlines'), int(now + ASK_AGAIN_MS), cid)
    local owner = owner_bridge(agent)
    if owner == bridge then
      out[#out + 1] = agent
    elseif owner ~= '' then
      hint(owner, 'o|' .. agent)
    end
  else
    redis.call('ZREM', key('deadlines'), cid)
  end
end
local next_due = redis.call('ZRANGE', key('deadlines'), 0, 0, 'WITHSCORES')
if next_due[2] then
  out[1] = math.max(tonumber(next_due[2]) - now, 0)
end
out[3] = add_offers(bridge, offers, out[2])
return out
