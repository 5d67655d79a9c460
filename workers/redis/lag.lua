-- How far a group is behind on a stream. KEYS[1]: the stream, ARGV[1]: the group. One script, so that the
-- numbers belong together. Answers length, entries ever added less those read (-1: unknown), pending, 1 if
-- one waits for delivery, 1 if a delivered one is left, the oldest one not stored and when it says that it
-- came. Bodies stay in Redis.
local function fields(a)
  local f = {}
  for i = 1, #a, 2 do
    f[a[i]] = a[i + 1]
  end
  return f
end
local function first(from, to)
  return redis.call('XRANGE', KEYS[1], from, to, 'COUNT', 1)[1]
end
local added = fields(redis.call('XINFO', 'STREAM', KEYS[1]))['entries-added']
for _, raw in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local g = fields(raw)
  if g['name'] == ARGV[1] then
    local last, read = g['last-delivered-id'], g['entries-read']
    local waiting = first('(' .. last, '+')
    local delivered = first('-', last)
    local oldest = waiting
    if g['pending'] > 0 then
      local id = redis.call('XPENDING', KEYS[1], ARGV[1])[2]
      oldest = first(id, id) or {id, {}} -- pending and deleted
    end
    local said = oldest and fields(oldest[2])
    said = said and (said['received_at'] or said['issued_at']) or ''
    return {redis.call('XLEN', KEYS[1]), read and added - read or -1, g['pending'], waiting and 1 or 0,
      delivered and 1 or 0, oldest and oldest[1] or '', string.sub(said, 1, 64)}
  end
end
return false
