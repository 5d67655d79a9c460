#!lua
-- ROUTER READ: the next commands for the router, fenced: a router that was frozen takes nothing.
--   in:  prefix, lease text, '>' for new entries or '0' for those read and not yet routed, count
--   out: entries as XRANGE gives them, or 'FENCED'
-- @include lib/keys.lua
local _, lease, from, count = unpack(ARGV)
if redis.call('GET', key('lease.router')) ~= lease then
  return 'FENCED'
end
local got = redis.call('XREADGROUP', 'GROUP', 'agent-bridge', 'router', 'COUNT', count,
  'STREAMS', key('commands'), from)
return got and got[1] and got[1][2] or {}
