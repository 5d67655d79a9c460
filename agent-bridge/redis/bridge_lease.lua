#!lua flags=allow-oom
-- BRIDGE LEASE: this bridge is alive. Hints are sent only to bridges with a lease.
--   in:  prefix, bridge, instance, started (ms, '' at first), ttl (ms)
--   out: started, and the lease of another process with this name or ''
-- The value is started|instance; sessions of this bridge with an epoch before started are over.
-- @include lib/keys.lua
local _, bridge, instance, started, ttl = unpack(ARGV)
local name = key('bridge.' .. bridge)
local held = redis.call('GET', name) or ''
if started == '' then
  started = int(now_ms())
end
local mine = started .. '|' .. instance
redis.call('SET', name, mine, 'PX', ttl)
return {started, held ~= mine and held or ''}
