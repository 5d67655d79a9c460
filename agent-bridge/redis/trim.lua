#!lua flags=allow-oom
-- TRIM: drops entries of a stream that every group has acknowledged.
--   in:  prefix, lease text, stream's name without prefix, groups that must exist
--   out: 'FENCED' | 'no_stream' | 'no_group' and which (nothing is dropped) | 'trimmed' and how many
-- Any other group that exists is respected too.
-- @include lib/keys.lua
-- @include lib/groups.lua
local stream = key(ARGV[3])
if redis.call('GET', key('lease.router')) ~= ARGV[2] then
  return 'FENCED'
end
if redis.call('EXISTS', stream) == 0 then
  return {'no_stream', 0}
end

local keep -- the first id that must stay
local groups = groups_of(stream)
for name, g in pairs(groups) do
  local ms, seq = id_parts(g['last-delivered-id'])
  local first = int(ms) .. '-' .. int(seq + 1)
  if g.pending > 0 then
    first = redis.call('XPENDING', stream, name)[2]
  end
  if not keep or id_before(first, keep) then
    keep = first
  end
end
for i = 4, #ARGV do
  if not groups[ARGV[i]] then
    return {'no_group', ARGV[i]}
  end
end
return {'trimmed', keep and redis.call('XTRIM', stream, 'MINID', keep) or 0}
