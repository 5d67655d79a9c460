-- Which of these commands did Redis lose? ARGV: prefix, then correlation_id and the entry of
-- <prefix>.commands by turns ('' when unknown). Answers one 0 or 1 (lost) a command.
-- One script, so that a command cannot be routed between the two looks.
local prefix = ARGV[1]
local answer = {}
for i = 2, #ARGV, 2 do
  local id, entry = ARGV[i], ARGV[i + 1]
  local lost = 1
  if redis.call('EXISTS', prefix .. '.cid.' .. id) == 1 then
    lost = 0
  elseif entry ~= '' and #redis.call('XRANGE', prefix .. '.commands', entry, entry) > 0 then
    lost = 0 -- not routed yet
  end
  answer[#answer + 1] = lost
end
return answer
