#!lua flags=allow-oom
-- Closes a command whose agent is lost, then writes its result (unknown) where every result goes; or, without one, a
-- command that has ended, which Redis forgot.
-- ARGV: prefix, correlation_id, agent_id, force ('1': also when Redis holds it as finished, whose
-- result was never stored), keep_ms, then field, value, … of the result entry.
-- A RESULT the agent sends later is still stored once by the bridges (state `lost`), as late evidence.
local prefix, id, agent, force, keep_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local marker = prefix .. '.cid.' .. id
local known = redis.call('HMGET', marker, 'agent', 'entry', 'state')
local owner = known[1] or agent
local finished = known[3] == 'done' or known[3] == 'lost'
if finished and force ~= '1' then
  return 0
end
if not finished then
  local mailbox = prefix .. '.mbox.' .. owner
  if known[2] then
    redis.call('XDEL', mailbox, known[2])
  end
  redis.call('ZREM', prefix .. '.deadlines', id)
  redis.call('HDEL', prefix .. '.offered.' .. owner, id)
  if redis.call('XLEN', mailbox) == 0 then
    redis.call('SREM', prefix .. '.waiting', owner)
  end
  redis.call('HSET', marker, 'agent', owner, 'state', 'lost')
  redis.call('HDEL', marker, 'entry', 'exp', 'cancel', 'asked')
  redis.call('PEXPIRE', marker, keep_ms)
end
local fields = {}
for i = 6, #ARGV do
  fields[#fields + 1] = ARGV[i]
end
if #fields > 0 then
  redis.call('XADD', prefix .. '.command_results', '*', unpack(fields))
end
return 1
