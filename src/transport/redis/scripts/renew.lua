-- Renews what this worker holds, and says what it does not hold any more.
-- KEYS: source. ARGV: group, consumer, id….
-- Returns: {the time on Redis's clock, lost id…}.
local answer = { clock() }
for i = 3, #ARGV do
  if own(KEYS[1], ARGV[1], ARGV[i], ARGV[2]) then
    -- JUSTID leaves the count of deliveries alone.
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
  else
    answer[#answer + 1] = ARGV[i]
  end
end
return answer
