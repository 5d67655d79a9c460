#!lua flags=no-writes
-- LOOKUP: what is known of a command whose RESULT has come, to mask its secrets before it is stored.
--   in:  prefix, agent, correlation id
--   out: 'open' verb params | 'withhold' (open, but its parameters are gone) |
--        'finished' | 'not_yours' | 'unknown'
-- @include lib/keys.lua
local _, agent, cid = unpack(ARGV)
local owner, entry, state = unpack(redis.call('HMGET', key('cid.' .. cid), 'agent', 'entry', 'state'))
if not owner or state == 'tombstone' or state == 'posted' then
  return {'unknown'}
elseif owner ~= agent then
  return {'not_yours'}
elseif state == 'done' then
  return {'finished'}
end
local got = entry and redis.call('XRANGE', key('mbox.' .. agent), entry, entry)[1]
if not got then
  return {'withhold'}
end
local about = {}
for i = 1, #got[2], 2 do
  about[got[2][i]] = got[2][i + 1]
end
return {'open', about.verb, about.params}
