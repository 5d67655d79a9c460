#!lua
-- RESULT: stores an agent's answer, once, and forgets the command.
--   in:  prefix, agent, correlation id, frame (masked), bridge, epoch, now as text
--   out: 'stored' | 'finished' (it was already) | 'not_yours' | 'unknown', and what is left in the
--        agent's mailbox
-- @include lib/keys.lua
-- @include lib/finish.lua
local _, agent, cid, frame, bridge, epoch, received_at = unpack(ARGV)
local owner, entry, state = unpack(redis.call('HMGET', key('cid.' .. cid), 'agent', 'entry', 'state'))
if not owner or state == 'tombstone' or state == 'posted' then
  return {'unknown', 0}
elseif owner ~= agent then
  return {'not_yours', 0}
end
if state == 'queued' or state == 'offered' then
  finish(cid, agent, entry, {frame = frame, source = 'agent', bridge = bridge, epoch = epoch,
    received_at = received_at}, 'done')
elseif state == 'lost' then
  write_result(cid, agent, {}, {frame = frame, source = 'agent', bridge = bridge, epoch = epoch,
    received_at = received_at})
  mark_finished(cid, agent, 'done')
else
  return {'finished', redis.call('XLEN', key('mbox.' .. agent))}
end
return {'stored', redis.call('XLEN', key('mbox.' .. agent))}
