#!lua flags=allow-oom
-- TRIM: drops entries of a stream that every group has acknowledged.
--   in:  prefix, lease text, stream's name without prefix, groups that must exist
--   out: 'FENCED' | 'no_stream' | 'no_group' and which (nothing is dropped) | 'trimmed' and how many
-- Any other group that exists is respected too.
-- @include lib/keys.lua
local stream = key(ARGV[3])
if redis.call('GET', key('lease.router')) ~= ARGV[2] then
  return 'FENCED'
end
if redis.call('EXISTS', stream) == 0 then
  return {'no_stream', 0}
end

local function parts(id)
  local ms, seq = id:match('^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function before(a, b)
  local a_ms, a_seq = parts(a)
  local b_ms, b_seq = parts(b)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end

local keep, seen = nil, {} -- the first id that must stay
for _, raw in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local g = {}
  for i = 1, #raw, 2 do
    g[raw[i]] = raw[i + 1]
  end
  seen[g.name] = true
  local ms, seq = parts(g['last-delivered-id'])
  local first = int(ms) .. '-' .. int(seq + 1)
  if g.pending > 0 then
    first = redis.call('XPENDING', stream, g.name)[2]
  end
  if not keep or before(first, keep) then
    keep = first
  end
end
for i = 4, #ARGV do
  if not seen[ARGV[i]] then
    return {'no_group', ARGV[i]}
  end
end
return {'trimmed', keep and redis.call('XTRIM', stream, 'MINID', keep) or 0}
