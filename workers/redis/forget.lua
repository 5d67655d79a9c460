-- Drops consumers of a group that hold nothing and were idle longer than ARGV[3] ms, but for our own. KEYS[1]:
-- the stream; ARGV: group, our own. One script, because a consumer may take entries between the look and
-- the removal, and removing it would drop them.
local gone = 0
for _, c in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local f = {}
  for i = 1, #c, 2 do
    f[c[i]] = c[i + 1]
  end
  if f['pending'] == 0 and f['idle'] > tonumber(ARGV[3]) and f['name'] ~= ARGV[2] then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], f['name'])
    gone = gone + 1
  end
end
return gone
