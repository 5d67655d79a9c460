#!lua flags=allow-oom
-- RELEASE: a connection has ended; nobody owns its agent, unless someone else does by now.
--   in:  prefix, agent, owner text of the connection
--   out: 1 released, 0 it was no longer ours
-- @include lib/keys.lua
if redis.call('HGET', key('owner'), ARGV[2]) == ARGV[3] then
  return redis.call('HDEL', key('owner'), ARGV[2])
end
return 0
