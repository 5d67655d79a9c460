-- Which of these commands did Redis lose? ARGV: prefix, then correlation_id and the entry of
-- <prefix>.commands by turns ('' when unknown). Answers one 0 or 1 (lost) a command.
-- One script, so that a command cannot be routed between the two looks.
local prefix = ARGV[1]
local answer = {}
for i = 2, #ARGV, 2 do
  local id, entry = ARGV[i], ARGV[i + 1]
  local lost = 1
  local state = redis.call('HGET', prefix .. '.cid.' .. id, 'state')
  -- A tombstone is of a cancel that found nothing: it knows no more of the command than we do.
  if state and state ~= 'tombstone' then
    lost = 0
  elseif entry ~= '' and #redis.call('XRANGE', prefix .. '.commands', entry, entry) > 0 then
    lost = 0 -- not routed yet
  end
  answer[#answer + 1] = lost
end
return answer
