#!lua
-- OFFER: what an agent is to be sent now, at most `window` of its commands being open at once.
--   in:  prefix, agent, owner text of its connection, journal id or '', window,
--        '1' to offer again what was offered and not answered (a new connection), bridge, conn,
--        epoch, now as text, offers this bridge remembers
--   out: 'FENCED', or the number left in the mailbox, this bridge's offers, 1 if Redis lost some, 1 if some wait for
--        the ledger (offer again soon), 1 if many ended here and there may be more (offer again at once, as now), then
--        10 for each entry to send:
--        kind (command, cancel), correlation id, verb, params, ttl left (ms), expires_ms,
--        issued_at, issued by, signature, age since the stream entry (ms)
-- An id that was offered under one journal never goes to another one: it ends unknown. Past its
-- time nothing is sent as a command.
-- @include lib/keys.lua
-- @include lib/finish.lua
-- @include lib/doubt.lua
-- @include lib/groups.lua
-- @include lib/ledger.lua
local _, agent, mine, journal, window, again, bridge, conn, epoch, received_at, seen = unpack(ARGV)
local ENDS_MAX = 64 -- a call: others wait meanwhile
window = tonumber(window)
if redis.call('HGET', key('owner'), agent) ~= mine then
  return 'FENCED'
end

local mbox, offered = key('mbox.' .. agent), key('offered.' .. agent)
local now = now_ms()
local offers, lost = count_offers(bridge, seen)
local out, open, done, ended, waits = {0, 0, lost, 0, 0}, 0, 0, 0, false

local function send(kind, e)
  local exp = tonumber(e.exp)
  for _, v in ipairs({kind, e.cid, e.verb, e.params, int(math.max(exp - now, 0)), e.exp,
    e.issued_at, e.by, e.sig, int(math.max(now - tonumber(e.at), 0))}) do
    out[#out + 1] = v
  end
end

local function bind(e)
  done = done + 1
  redis.call('HSET', offered, e.cid, journal)
  redis.call('HSET', key('cid.' .. e.cid), 'state', 'offered')
  redis.call('HDEL', key('cid.' .. e.cid), 'asked')
  redis.call('XADD', key('command_events'), '*', 'correlation_id', e.cid, 'agent_id', agent,
    'event', 'offered', 'bridge_id', bridge, 'conn_id', conn, 'epoch', epoch,
    'received_at', received_at)
end

local function ends(e, state, code, msg, mark)
  done, ended = done + 1, ended + 1
  finish(e.cid, agent, e.id, bridge_result(e.cid, agent, state, code, msg, bridge, received_at),
    mark)
end

local function consider(e)
  local under = redis.call('HGET', offered, e.cid)
  local cancel = redis.call('HGET', key('cid.' .. e.cid), 'cancel')
  local late = tonumber(e.exp) <= now
  if not under and late and e.maybe == '' and held_ms() == 0 and not in_doubt(e.id) then
    return ends(e, 'expired', 'expired', 'its time was over before it could be offered', 'done')
  elseif under and under ~= '' and journal ~= '' and under ~= journal then
    return ends(e, 'unknown', 'journal_changed',
      'it was offered to this agent under another journal', 'lost')
  end
  open = open + 1
  local fresh = not under
  local since = fresh and not late and not cancel and may_be_over_since(e.id)
  if since and not ledger_agrees(since, e.cid, agent, bridge, received_at) then
    waits = true
  end
  if fresh and waits then -- none overtakes it; each asks at once
    return
  elseif fresh then
    bind(e)
  elseif under == '' and journal ~= '' then
    redis.call('HSET', offered, e.cid, journal)
  end
  if late or cancel then
    send('cancel', e)
  elseif fresh or (again == '1' and (under == '' or under == journal)) then
    send('command', e)
  end
end

local from = '-'
while open < window do
  local got = redis.call('XRANGE', mbox, from, '+', 'COUNT', window)
  for _, raw in ipairs(got) do
    if open < window and ended < ENDS_MAX then
      local e = {id = raw[1]}
      for i = 1, #raw[2], 2 do
        e[raw[2][i]] = raw[2][i + 1]
      end
      consider(e)
    end
    from = '(' .. raw[1]
  end
  if #got < window or ended >= ENDS_MAX then
    break
  end
end
out[1] = redis.call('XLEN', mbox)
out[2] = add_offers(bridge, offers, done)
out[4] = waits and 1 or 0
out[5] = ended >= ENDS_MAX and 1 or 0
return out
