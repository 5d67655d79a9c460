#!lua
-- POST: a command given over HTTP goes into viw.commands, once for the same id and content.
--   in:  prefix, agent, correlation id, digest or '' (a cancel), '1' if the agent must be connected,
--        most that may wait for it, and be cancelled for it a minute; the fields of the stream entry
--   out: 'queued' | 'conflict' | 'offline' | 'full'
-- @include lib/keys.lua
-- @include lib/hint.lua
local _, agent, cid, digest, connected, queue_max = unpack(ARGV, 1, 6)
local marker, posted = key('cid.' .. cid), key('posted.' .. agent)
if digest == '' then
  -- Any id can be cancelled, again and again, and one nobody knows leaves a marker for days.
  local asked = key('cancels.' .. agent)
  if redis.call('SISMEMBER', asked, cid) == 1 then
    return 'queued'
  elseif redis.call('SCARD', asked) >= tonumber(queue_max) then
    return 'full'
  end
  redis.call('XADD', key('commands'), '*', unpack(ARGV, 7))
  redis.call('SADD', asked, cid)
  if redis.call('TTL', asked) < 0 then
    redis.call('EXPIRE', asked, 60)
  end
  return 'queued'
end
local known_agent, known, state = unpack(redis.call('HMGET', marker, 'agent', 'digest', 'state'))
if state then
  return known_agent == agent and known == digest and 'queued' or 'conflict'
elseif connected == '1' and owner_bridge(agent) == '' then
  return 'offline'
elseif redis.call('XLEN', key('mbox.' .. agent)) + redis.call('SCARD', posted) >= tonumber(queue_max) then
  return 'full'
end
redis.call('XADD', key('commands'), '*', unpack(ARGV, 7))
-- Until it is routed; then the router makes it last.
redis.call('HSET', marker, 'agent', agent, 'digest', digest, 'state', 'posted')
redis.call('PEXPIRE', marker, 8 * 86400 * 1000)
-- Waiting too, before the router has put it into the mailbox.
redis.call('SADD', posted, cid)
redis.call('PEXPIRE', posted, 3600 * 1000)
return 'queued'
