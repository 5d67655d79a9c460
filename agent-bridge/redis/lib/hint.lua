-- Tells the bridge that owns an agent to look: its name, or '' when the agent is connected nowhere.
-- Hints may be lost; the list is capped because a dead bridge reads nothing.
local function owner_bridge(agent)
  local owner = redis.call('HGET', key('owner'), agent)
  local bridge = owner and owner:match('^(.*)|%d+|[^|]*$')
  if bridge and redis.call('EXISTS', key('bridge.' .. bridge)) == 1 then
    return bridge
  end
  return ''
end
local function hint(bridge, text)
  local list = key('wake.' .. bridge)
  if redis.call('RPUSH', list, text) > 10000 then
    redis.call('LTRIM', list, -10000, -1)
  end
end
