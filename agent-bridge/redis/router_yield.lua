#!lua flags=allow-oom
-- ROUTER YIELD: give the lease back on a clean stop.
--   in:  prefix, lease text
--   out: 1 given back, 0 it was no longer ours
-- @include lib/keys.lua
if redis.call('GET', key('lease.router')) == ARGV[2] then
  return redis.call('DEL', key('lease.router'))
end
return 0
