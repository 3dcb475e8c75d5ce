-- Fetches entries again that are pending for this consumer and did not reach it. Does not count as
-- an attempt.
-- KEYS: source. ARGV: group, consumer, '1' on the retry stream, id….
-- Returns: {{id, deliveries, fields}…}.
local src, group, me = KEYS[1], ARGV[1], ARGV[2]
local found = {}
for i = 4, #ARGV do
  local id = ARGV[i]
  local pending = redis.call('XPENDING', src, group, id, id, 1, me)[1]
  if pending then
    if redis.call('XRANGE', src, id, id)[1] then
      local claimed = redis.call('XCLAIM', src, group, me, 0, id, 'RETRYCOUNT', pending[4])
      found[#found + 1] = { id, pending[4], claimed[1][2] }
    else
      finish(src, group, id, ARGV[3] == '1')
    end
  end
end
return found
