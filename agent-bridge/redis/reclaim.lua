#!lua
-- RECLAIM: Redis has lost who owns an agent that is still connected here.
--   in:  prefix, agent, bridge, conn, epoch
--   out: 'kept' | 'superseded' (a later connection exists) | 'decommissioned'
-- The epoch stays, so of two bridges that both believe to own it the later connection wins.
-- @include lib/keys.lua
local _, agent, bridge, conn, epoch = unpack(ARGV)
local mine = bridge .. '|' .. epoch .. '|' .. conn

if redis.call('SISMEMBER', key('decommissioned'), agent) == 1 then
  return {'decommissioned'}
end
local last = tonumber(redis.call('HGET', key('epoch'), agent) or '0')
local owner = redis.call('HGET', key('owner'), agent)
if last > tonumber(epoch) or (last == tonumber(epoch) and owner and owner ~= mine) then
  return {'superseded'}
end
redis.call('HSET', key('epoch'), agent, epoch)
redis.call('HSET', key('owner'), agent, mine)
return {'kept'}
