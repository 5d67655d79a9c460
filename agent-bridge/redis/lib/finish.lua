local REMEMBER_MS = 8 * 86400 * 1000 -- ids must not be reused for this long

-- The fields of a mailbox entry, or an empty table.
local function mailbox_entry(agent, entry)
  local about = {}
  local got = entry and redis.call('XRANGE', key('mbox.' .. agent), entry, entry)[1]
  for i = 1, got and #got[2] or 0, 2 do
    about[got[2][i]] = got[2][i + 1]
  end
  return about
end

-- Writes the result of a command. `out` has frame, source and, from the bridge, state and error_code.
local function write_result(cid, agent, about, out)
  local args = {'XADD', key('command_results'), '*', 'correlation_id', cid, 'agent_id', agent}
  local function add(name, value)
    if value and value ~= '' then
      args[#args + 1] = name
      args[#args + 1] = value
    end
  end
  add('frame', out.frame)
  add('source', out.source)
  add('command', about.verb)
  add('issued_by_admin_id', about.by)
  add('issued_at', about.issued_at)
  add('expires_at', about.expires_at)
  add('bridge_id', out.bridge)
  add('epoch', out.epoch)
  add('received_at', out.received_at)
  add('state', out.state)
  add('error_code', out.error_code)
  redis.call(unpack(args))
end

-- Marks an id as finished; 'lost' lets one later answer of the agent through, as evidence.
local function mark_finished(cid, agent, state)
  local marker = key('cid.' .. cid)
  redis.call('HSET', marker, 'agent', agent, 'state', state)
  redis.call('HDEL', marker, 'entry', 'exp', 'cancel', 'asked')
  redis.call('PEXPIRE', marker, REMEMBER_MS)
end

-- Ends a command in one go: the result first, then everything that kept it alive.
local function finish(cid, agent, entry, out, state)
  write_result(cid, agent, mailbox_entry(agent, entry), out)
  local mbox = key('mbox.' .. agent)
  if entry then
    redis.call('XDEL', mbox, entry)
  end
  if redis.call('XLEN', mbox) == 0 then
    redis.call('DEL', mbox)
    redis.call('SREM', key('waiting'), agent)
  end
  redis.call('ZREM', key('deadlines'), cid)
  redis.call('HDEL', key('offered.' .. agent), cid)
  mark_finished(cid, agent, state)
end

-- A result the bridge itself gives. Ids were checked against their patterns before they came here.
local function bridge_result(cid, agent, state, code, msg, bridge, received_at)
  local status = state == 'rejected' and 'error' or state
  return {
    frame = '{"type":"RESULT","agent_id":"' .. agent .. '","correlation_id":"' .. cid ..
      '","status":"' .. status .. '","error":{"code":"' .. code .. '","msg":"' .. msg .. '"}}',
    source = 'bridge', state = state, error_code = code, bridge = bridge, received_at = received_at,
  }
end
