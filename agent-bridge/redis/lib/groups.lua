local function id_parts(id)
  local ms, seq = id:match('^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function id_before(a, b)
  local a_ms, a_seq = id_parts(a)
  local b_ms, b_seq = id_parts(b)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end

-- The consumer groups of a stream that exists, by name, with their fields of XINFO GROUPS.
local function groups_of(stream)
  local groups = {}
  for _, raw in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local g = {}
    for i = 1, #raw, 2 do
      g[raw[i]] = raw[i + 1]
    end
    groups[g.name] = g
  end
  return groups
end
