-- Redis may forget (FLUSHALL, the AOF's tail, a replica that was behind). Each bridge counts here what it did: offers,
-- and commands that it ended itself; fewer than it remembers means that some are forgotten. What was routed until
-- DOUBT_MS after that may have run before, under an offer, or a sending of the same id, that is forgotten: it ends
-- by its agent's answer alone.
local DOUBT_MS = 300000
local DOUBT_KEPT_MS = 8 * 86400 * 1000
local HOLD_MS = 3000

-- `seen`: offers the bridge remembers, -1 when it has just started. Returns how many there are, 1 if some were lost.
local function count_offers(bridge, seen)
  local found = tonumber(redis.call('HGET', key('offers'), bridge) or '-1')
  local lost = found < tonumber(seen)
  if lost then
    redis.call('SET', key('doubt'), int(now_ms() + DOUBT_MS), 'PX', DOUBT_KEPT_MS)
  end
  local n = math.max(found, tonumber(seen), 0)
  if n ~= found then
    redis.call('HSET', key('offers'), bridge, int(n))
  end
  return n, lost and 1 or 0
end

-- Adds to what count_offers found. Returns the sum.
local function add_offers(bridge, n, more)
  if more > 0 then
    redis.call('HSET', key('offers'), bridge, int(n + more))
  end
  return n + more
end

-- A bridge has lost Redis and is back: until the others are back too, none may have noticed what is forgotten. For so
-- long nothing ends without its agent; what can wait does. What is in a mailbox now is shown to the ledger first.
local function hold()
  redis.call('SET', key('hold'), '1', 'PX', HOLD_MS)
  redis.call('SET', key('verify'), int(now_ms()), 'PX', DOUBT_KEPT_MS)
end
local function held_ms()
  return math.max(redis.call('PTTL', key('hold')), 0)
end

-- Whether a command may have run before it was put into its mailbox at `at` (an entry's id, or ms as text).
local function in_doubt(at)
  local till = redis.call('GET', key('doubt'))
  return till and tonumber(at:match('^%d+')) < tonumber(till)
end

-- When Redis forgot, if it may have been the end of the command of this mailbox entry, which only PostgreSQL knows then.
local function may_be_over_since(entry)
  local till, verify = unpack(redis.call('MGET', key('doubt'), key('verify')))
  local since = till and tonumber(till) - DOUBT_MS
  if verify and tonumber(entry:match('^%d+')) <= tonumber(verify) then
    since = math.max(since or 0, tonumber(verify))
  end
  return since
end
