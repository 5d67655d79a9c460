-- What Redis forgot may be over in PostgreSQL. Where that can be, a command is shown to the ledger before its first
-- offer: by the event 'offering', on which results-writer closes here what has ended there. Once results-writer has
-- passed that event the command may be offered. Without a results-writer it waits, and expires.
local LEDGER = 'results-writer'

local function ledger_has_passed(event)
  local function parts(id)
    local ms, n = id:match('^(%d+)-(%d+)$')
    return tonumber(ms), tonumber(n)
  end
  for _, raw in ipairs(redis.pcall('XINFO', 'GROUPS', key('command_events'))) do
    local g = {}
    for i = 1, #raw, 2 do
      g[raw[i]] = raw[i + 1]
    end
    if g.name == LEDGER then
      local ms, n = parts(event)
      local at_ms, at_n = parts(g['last-delivered-id'])
      return (at_ms > ms or at_ms == ms and at_n >= n)
        and #redis.call('XPENDING', key('command_events'), LEDGER, event, event, 1) == 0
    end
  end
  return false
end

-- Asks at the first call after each loss (`since` names it); true once the answer is in. No clock is compared with
-- another: Redis' may have been set back since.
local function ledger_agrees(since, cid, agent, bridge, received_at)
  local marker = key('cid.' .. cid)
  local event, about = (redis.call('HGET', marker, 'asked') or ''):match('^(%S+) (%S+)$')
  if about == int(since) then
    return ledger_has_passed(event)
  end
  event = redis.call('XADD', key('command_events'), '*', 'correlation_id', cid, 'agent_id', agent,
    'event', 'offering', 'bridge_id', bridge, 'received_at', received_at)
  redis.call('HSET', marker, 'asked', event .. ' ' .. int(since))
  return false
end
