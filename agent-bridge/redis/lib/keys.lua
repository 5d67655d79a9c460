local P = ARGV[1]
local function key(name)
  return P .. '.' .. name
end
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function int(n) -- Lua would write large numbers as 1.7e+12
  return string.format('%.0f', n)
end
