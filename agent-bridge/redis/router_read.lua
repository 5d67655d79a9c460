#!lua
-- ROUTER READ: the next commands for the router, fenced: a router that was frozen takes nothing.
--   in:  prefix, lease text, '>' for new entries or '0' for those read and not yet routed, count
--   out: 'FENCED', or the last id delivered and the entries as XRANGE gives them
-- What another consumer of the group has read (an earlier version, a person with redis-cli) and not acknowledged
-- is nobody's: with '0' the router takes it over. Only one name is used, so nobody is robbed.
-- Whoever may XADD cannot make this answer as large as he likes: of an entry with a long field or many of them those
-- that mean something are left, the first of each name, and what is longer than it may be is cut, yet still too long.
-- @include lib/keys.lua
-- @include lib/groups.lua
local LONG, MANY = 5000, 40
local KEPT = {params = 70000, correlation_id = LONG, agent_id = LONG, command = LONG, issued_by_admin_id = LONG,
  ttl_s = LONG, issued_at = LONG, expires_at = LONG, op = LONG, signature = LONG, reason = LONG, requeued = LONG}
local _, lease, from, count = unpack(ARGV)

local function is_large(fields)
  for i = 1, #fields, 2 do
    if #fields[i] > LONG or #fields[i + 1] > (KEPT[fields[i]] or LONG) then
      return true
    end
  end
  return #fields > 2 * MANY
end

local function cut(fields)
  local out, seen = {}, {}
  for i = 1, #fields, 2 do
    local name = fields[i]
    if KEPT[name] and not seen[name] then
      seen[name] = true
      out[#out + 1] = name
      out[#out + 1] = fields[i + 1]:sub(1, KEPT[name])
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
