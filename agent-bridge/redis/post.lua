#!lua
-- POST: a command given over HTTP goes into viw.commands, once for the same id and content.
--   in:  prefix, agent, correlation id, digest or '' (a cancel), '1' if the agent must be connected,
--        most that may wait for it, then the fields of the stream entry
--   out: 'queued' | 'conflict' | 'offline' | 'full'
-- @include lib/keys.lua
-- @include lib/hint.lua
local _, agent, cid, digest, connected, queue_max = unpack(ARGV, 1, 6)
local marker, posted = key('cid.' .. cid), key('posted.' .. agent)
if digest ~= '' then
  local known_agent, known, state = unpack(redis.call('HMGET', marker, 'agent', 'digest', 'state'))
  if state then
    return known_agent == agent and known == digest and 'queued' or 'conflict'
  end
end
if connected == '1' and owner_bridge(agent) == '' then
  return 'offline'
end
if digest ~= '' and redis.call('XLEN', key('mbox.' .. agent)) + redis.call('SCARD', posted) >=
    tonumber(queue_max) then
  return 'full'
end
redis.call('XADD', key('commands'), '*', unpack(ARGV, 7))
if digest ~= '' then
  -- Until it is routed; then the router makes it last.
  redis.call('HSET', marker, 'agent', agent, 'digest', digest, 'state', 'posted')
  redis.call('PEXPIRE', marker, 8 * 86400 * 1000)
  -- Waiting too, before the router has put it into the mailbox.
  redis.call('SADD', posted, cid)
  redis.call('PEXPIRE', posted, 3600 * 1000)
end
return 'queued'
