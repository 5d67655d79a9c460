#!lua
-- ROUTER READ: the next commands for the router, fenced: a router that was frozen takes nothing.
--   in:  prefix, lease text, '>' for new entries or '0' for those read and not yet routed, count
--   out: 'FENCED', or the last id delivered and the entries as XRANGE gives them
-- @include lib/keys.lua
local _, lease, from, count = unpack(ARGV)
if redis.call('GET', key('lease.router')) ~= lease then
  return 'FENCED'
end
local got = redis.call('XREADGROUP', 'GROUP', 'agent-bridge', 'router', 'COUNT', count,
  'STREAMS', key('commands'), from)
if got and got[1] then
  local entries = got[1][2]
  return {#entries > 0 and entries[#entries][1] or '0-0', entries}
end
-- Nothing new: from where to wait.
local last = '0-0'
for _, raw in ipairs(redis.call('XINFO', 'GROUPS', key('commands'))) do
  local g = {}
  for i = 1, #raw, 2 do
    g[raw[i]] = raw[i + 1]
  end
  if g.name == 'agent-bridge' then
    last = g['last-delivered-id']
  end
end
return {last, {}}
