#!lua flags=no-writes
-- CHECK: a bridge asks about a batch of its agents.
--   in:  prefix, then agent and owner text of its connection, as often as needed
--   out: for each that needs something: its index (from 0) and
--        'superseded' | 'ownerless' | 'decommissioned' | 'waiting'
-- @include lib/keys.lua
local agents = {}
for i = 2, #ARGV, 2 do
  agents[#agents + 1] = ARGV[i]
end
if #agents == 0 then
  return {}
end
local owners = redis.call('HMGET', key('owner'), unpack(agents))
local gone = redis.call('SMISMEMBER', key('decommissioned'), unpack(agents))
local waiting = redis.call('SMISMEMBER', key('waiting'), unpack(agents))
local out = {}
for i = 1, #agents do
  local what
  if gone[i] == 1 then
    what = 'decommissioned'
  elseif not owners[i] then
    what = 'ownerless'
  elseif owners[i] ~= ARGV[2 * i + 1] then
    what = 'superseded'
  elseif waiting[i] == 1 then
    what = 'waiting'
  end
  if what then
    out[#out + 1] = i - 1
    out[#out + 1] = what
  end
end
return out
