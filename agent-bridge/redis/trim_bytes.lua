#!lua flags=allow-oom
-- TRIM BYTES: of the telemetry stream only about the last so many bytes stay, whoever wrote them.
--   in:  prefix, bytes this bridge wrote since it said so last, the bound
--   out: how many entries are dropped
-- telemetry_marks: "<last id> <bytes of all bridges until then>", oldest first; each bridge adds one with every 256th
-- part of the bound, so there are few.
-- @include lib/keys.lua
local DROP_MAX = 100000 -- at once; what is left goes with the next mark
local _, wrote, bound = unpack(ARGV)
local stream, marks = key('telemetry'), key('telemetry_marks')

local function mark_at(i)
  local id, bytes = (redis.call('LINDEX', marks, i) or ''):match('^(%S+) (%d+)$')
  return id, tonumber(bytes or 0)
end

if redis.call('EXISTS', stream) == 0 then
  redis.call('DEL', marks)
  return 0
end
local info = redis.call('XINFO', 'STREAM', stream)
local last
for i = 1, #info, 2 do
  last = info[i] == 'last-generated-id' and info[i + 1] or last
end
local _, total = mark_at(-1)
total = total + tonumber(wrote)
redis.call('RPUSH', marks, last .. ' ' .. int(total))

local first
while true do
  local id, bytes = mark_at(0)
  if total - bytes < tonumber(bound) then
    break
  end
  first = id
  redis.call('LPOP', marks)
end
return first and redis.call('XTRIM', stream, 'MINID', '~', first, 'LIMIT', DROP_MAX) or 0
