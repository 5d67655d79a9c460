#!lua
-- CLAIM: an agent has connected; from now on this connection owns it.
--   in:  prefix, agent, bridge, conn, nonce or '', nonce remembered for (ms), fingerprint or ''
--   out: 'claimed' epoch former-owner now (ms) | 'nonce_seen' | 'decommissioned' | 'revoked'
-- Repeating a CLAIM whose answer was lost is safe: the nonce is known to be this connection's.
-- @include lib/keys.lua
-- @include lib/hint.lua
local _, agent, bridge, conn, nonce, nonce_keep, fingerprint = unpack(ARGV)

if redis.call('SISMEMBER', key('decommissioned'), agent) == 1 then
  return {'decommissioned'}
end
if fingerprint ~= '' and redis.call('SISMEMBER', key('revoked'), fingerprint) == 1 then
  return {'revoked'}
end
if nonce ~= '' then
  local name = key('nonce.' .. agent .. '.' .. nonce)
  local seen = redis.call('GET', name)
  if seen and seen ~= conn then
    return {'nonce_seen'}
  end
  redis.call('SET', name, conn, 'PX', nonce_keep) -- the bridge's clock may be another
end

-- Time keeps epochs rising even when Redis has lost the last one.
local last = tonumber(redis.call('HGET', key('epoch'), agent) or '0')
local epoch = int(math.max(last + 1, now_ms()))
local former = redis.call('HGET', key('owner'), agent) or ''
local former_bridge = owner_bridge(agent)
redis.call('HSET', key('epoch'), agent, epoch)
redis.call('HSET', key('owner'), agent, bridge .. '|' .. epoch .. '|' .. conn)
if former_bridge ~= '' and former_bridge ~= bridge then
  hint(former_bridge, 's|' .. agent .. '|' .. epoch)
end
return {'claimed', epoch, former, int(now_ms())}
