#!lua flags=allow-oom
-- A command that ended here as never offered, but was offered before Redis forgot it: as if only its cancel were
-- known. What is requeued then is asked of the agent (CANCEL), see agent-bridge/redis/route.lua.
-- ARGV: prefix, correlation_id.
local marker = ARGV[1] .. '.cid.' .. ARGV[2]
if redis.call('HGET', marker, 'state') == 'done' then
  redis.call('HSET', marker, 'state', 'tombstone')
end
return 1
