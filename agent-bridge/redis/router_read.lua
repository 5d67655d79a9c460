#!lua
-- ROUTER READ: the next commands for the router, fenced: a router that was frozen takes nothing.
--   in:  prefix, lease text, '>' for new entries or '0' for those read and not yet routed, count
--   out: 'FENCED', or the last id delivered and the entries as XRANGE gives them
-- What another consumer of the group has read (an earlier version, a person with redis-cli) and not acknowledged
-- is nobody's: with '0' the router takes it over. Only one name is used, so nobody is robbed.
-- @include lib/keys.lua
-- @include lib/groups.lua
local _, lease, from, count = unpack(ARGV)
if redis.call('GET', key('lease.router')) ~= lease then
  return 'FENCED'
end
if from == '0' then
  for _, consumer in ipairs(redis.call('XPENDING', key('commands'), 'agent-bridge')[4] or {}) do
    if consumer[1] ~= 'router' then
      for _, e in ipairs(redis.call('XPENDING', key('commands'), 'agent-bridge', '-', '+', count, consumer[1])) do
        redis.call('XCLAIM', key('commands'), 'agent-bridge', 'router', 0, e[1], 'JUSTID')
      end
    end
  end
end
local got = redis.call('XREADGROUP', 'GROUP', 'agent-bridge', 'router', 'COUNT', count,
  'STREAMS', key('commands'), from)
if got and got[1] then
  local entries = got[1][2]
  return {#entries > 0 and entries[#entries][1] or '0-0', entries}
end
-- Nothing new: from where to wait.
return {groups_of(key('commands'))['agent-bridge']['last-delivered-id'], {}}
