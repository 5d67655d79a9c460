#!lua
-- ROUTER READ: the next commands for the router, fenced: a router that was frozen takes nothing.
--   in:  prefix, lease text, '>' for new entries or '0' for those read and not yet routed, count
--   out: 'FENCED', or the last id delivered and the entries as XRANGE gives them
-- What another consumer of the group has read (an earlier version, a person with redis-cli) and not acknowledged
-- is nobody's: with '0' the router takes it over. Only one name is used, so nobody is robbed.
-- Whoever may XADD cannot make this answer as large as he likes: what is longer than any field may be is cut, which
-- leaves it too long; of an entry with many fields those that mean something are left, the first of each name.
-- @include lib/keys.lua
-- @include lib/groups.lua
local FIELD_MAX, FIELDS_MAX = 70000, 40
local KNOWN = {correlation_id = 1, agent_id = 1, command = 1, params = 1, issued_by_admin_id = 1, ttl_s = 1,
  issued_at = 1, expires_at = 1, op = 1, signature = 1, reason = 1, requeued = 1}
local _, lease, from, count = unpack(ARGV)

local function is_large(fields)
  for i = 1, #fields do
    if #fields[i] > FIELD_MAX then
      return true
    end
  end
  return #fields > 2 * FIELDS_MAX
end

local function cut(fields)
  local out, seen = {}, {}
  for i = 1, #fields, 2 do
    local name = fields[i]:sub(1, FIELD_MAX)
    if #fields <= 2 * FIELDS_MAX or (KNOWN[name] and not seen[name]) then
      seen[name] = true
      out[#out + 1] = name
      out[#out + 1] = fields[i + 1]:sub(1, FIELD_MAX)
    end
  end
  return out
end
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
  for _, e in ipairs(entries) do
    if e[2] and is_large(e[2]) then -- no fields: it was deleted
      e[2] = cut(e[2])
    end
  end
  return {#entries > 0 and entries[#entries][1] or '0-0', entries}
end
-- Nothing new: from where to wait.
return {groups_of(key('commands'))['agent-bridge']['last-delivered-id'], {}}
