-- What Redis forgot may be over in PostgreSQL. Where that can be, a command is shown to the ledger before its first
-- offer: by the event 'offering', on which results-writer closes here what has ended there. Once results-writer has
-- passed that event the command may be offered. Without a results-writer it waits, and expires.
local LEDGER = 'results-writer'

local function ledger_has_passed(event)
  local events = key('command_events')
  local g = redis.call('EXISTS', events) == 1 and groups_of(events)[LEDGER]
  return g and not id_before(g['last-delivered-id'], event)
    and #redis.call('XPENDING', events, LEDGER, event, event, 1) == 0
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
