#!lua
-- ROUTE: a batch of commands into their agents' mailboxes, in order.
--   in:  prefix, lease text, bridge, now as text, offers this bridge remembers, then 13 for each entry:
--        entry id, kind, correlation id, agent, digest, verb, params, expires_ms, expires_at,
--        issued_at, issued by, signature, extra
--        kinds: run (extra '1': requeued, it may have been offered before Redis lost it)
--               cancel (extra '1': the command itself is lost, ask the agent all the same)
--               reject (extra: the reason's words, verb: its code)
--               drop (no usable id: only acknowledged)
--   out: 'FENCED', or this bridge's offers, 1 if Redis lost some, then for each entry what became of it and the
--        bridge to tell (or ''):
--        queued cancelled tombstone asked duplicate expired rejected finished mismatch dropped
-- Everything is written before the entry is acknowledged; repeating a batch changes nothing.
-- @include lib/keys.lua
-- @include lib/hint.lua
-- @include lib/finish.lua
-- @include lib/doubt.lua
local FIELDS, FIRST = 13, 6
local _, lease, bridge, received_at, seen = unpack(ARGV, 1, 5)
if redis.call('GET', key('lease.router')) ~= lease then
  return 'FENCED'
end

local now = now_ms()
local offers, lost = count_offers(bridge, seen)
local ended, told = 0, {}
-- The owner learns of it: by our answer when it is this bridge, else by a hint, once a batch.
local function tell(agent)
  local owner = owner_bridge(agent)
  if owner ~= '' and owner ~= bridge and not told[agent] then
    told[agent] = true
    hint(owner, 'o|' .. agent)
  end
  return owner
end
local function ends(e, entry, state, code, msg)
  ended = ended + 1
  finish(e.cid, e.agent, entry, bridge_result(e.cid, e.agent, state, code, msg, bridge,
    received_at), 'done')
  return state
end
-- The result names the command although it never had a mailbox entry.
local function ends_unqueued(e, state, code, msg)
  ended = ended + 1
  write_result(e.cid, e.agent, {verb = e.verb, by = e.by, issued_at = e.issued_at, expires_at = e.expires_at},
    bridge_result(e.cid, e.agent, state, code, msg, bridge, received_at))
  mark_finished(e.cid, e.agent, 'done')
  return state, ''
end

local function put_in_mailbox(e, state, cancel)
  local entry = redis.call('XADD', key('mbox.' .. e.agent), '*', 'cid', e.cid, 'verb', e.verb,
    'params', e.params, 'exp', e.exp, 'expires_at', e.expires_at, 'issued_at', e.issued_at,
    'by', e.by, 'sig', e.sig, 'at', e.id:match('^%d+'), 'maybe', state == 'offered' and '1' or '')
  redis.call('ZADD', key('deadlines'), e.exp, e.cid)
  redis.call('SADD', key('waiting'), e.agent)
  redis.call('HSET', key('cid.' .. e.cid), 'agent', e.agent, 'digest', e.digest, 'entry', entry,
    'exp', e.exp, 'state', state)
  if cancel then
    redis.call('HSET', key('cid.' .. e.cid), 'cancel', '1')
  end
  redis.call('PERSIST', key('cid.' .. e.cid))
  return tell(e.agent)
end

local kinds = {}
function kinds.run(e, m)
  if m.state == 'tombstone' then -- whichever agent its cancel named: else it would stay open for as long
    if e.extra == '1' or in_doubt(int(now)) then -- lost, then cancelled, then sent again: it may have run
      return 'asked', put_in_mailbox(e, 'offered', true)
    elseif held_ms() > 0 then
      local owner = put_in_mailbox(e, 'queued', true)
      redis.call('ZADD', key('deadlines'), int(now), e.cid) -- EXPIRE ends it when the hold is over
      return 'asked', owner
    end
    return ends_unqueued(e, 'cancelled', 'cancelled', 'cancelled before it was queued')
  elseif m.state and not (m.state == 'posted' and m.digest == e.digest) then
    return 'duplicate', ''
  elseif redis.call('SISMEMBER', key('decommissioned'), e.agent) == 1 then
    e.verb, e.extra = 'decommissioned', 'the agent is decommissioned'
    return kinds.reject(e, {})
  elseif e.extra ~= '1' and tonumber(e.exp) <= now and held_ms() == 0 and not in_doubt(int(now)) then
    return ends_unqueued(e, 'expired', 'expired', 'its time was over before it could be offered')
  end
  return 'queued', put_in_mailbox(e, e.extra == '1' and 'offered' or 'queued')
end

function kinds.cancel(e, m)
  if e.extra == '1' and (not m.state or m.state == 'tombstone') then
    return 'asked', put_in_mailbox(e, 'offered', true)
  elseif not m.state then
    redis.call('HSET', key('cid.' .. e.cid), 'agent', e.agent, 'state', 'tombstone')
    redis.call('PEXPIRE', key('cid.' .. e.cid), REMEMBER_MS)
    return 'tombstone', ''
  elseif m.agent ~= e.agent then
    return 'mismatch', ''
  elseif m.state == 'queued' and held_ms() == 0 and not in_doubt(m.entry) then
    return ends(e, m.entry, 'cancelled', 'cancelled', 'cancelled before it was offered'), ''
  elseif m.state == 'queued' or m.state == 'offered' then
    redis.call('HSET', key('cid.' .. e.cid), 'cancel', '1')
    if m.state == 'queued' and held_ms() > 0 then
      redis.call('ZADD', key('deadlines'), int(now), e.cid)
    end
    return 'asked', tell(e.agent)
  end
  return 'finished', ''
end

function kinds.reject(e, m)
  local unheard = m.state == 'posted' or m.state == 'tombstone' and not in_doubt(int(now))
  if m.state and not unheard then
    return 'duplicate', ''
  end
  return ends_unqueued({cid = e.cid, agent = e.agent, by = e.by}, 'rejected', e.verb, e.extra)
end

function kinds.drop()
  return 'dropped', ''
end

local out = {0, lost}
for i = FIRST, #ARGV, FIELDS do
  local e, m = {}, {}
  e.id, e.kind, e.cid, e.agent, e.digest, e.verb, e.params, e.exp, e.expires_at, e.issued_at,
    e.by, e.sig, e.extra = unpack(ARGV, i, i + FIELDS - 1)
  if e.cid ~= '' then
    local got = redis.call('HMGET', key('cid.' .. e.cid), 'agent', 'digest', 'entry', 'state')
    m.agent, m.digest, m.entry, m.state = unpack(got)
  end
  local what, owner = kinds[e.kind](e, m)
  if m.state == 'posted' and m.agent == e.agent and what ~= 'duplicate' then
    redis.call('SREM', key('posted.' .. e.agent), e.cid)
  end
  redis.call('XACK', key('commands'), 'agent-bridge', e.id)
  out[#out + 1] = what
  out[#out + 1] = owner
end
out[1] = add_offers(bridge, offers, ended)
return out
