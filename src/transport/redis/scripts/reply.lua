-- Stores replies and acknowledges their requests, each on its own: what is not this worker's any
-- more is passed over.
-- KEYS: source, then the reply stream of each. ARGV: group, consumer, '1' on the retry stream, then
--       id and envelope of each.
-- Returns for each: 1 stored, 0 could not be (and acknowledged all the same), -1 not ours.
local src, group, me, retry = KEYS[1], ARGV[1], ARGV[2], ARGV[3] == '1'
local results = {}
for i = 2, #KEYS do
  local id, envelope = ARGV[2 * i], ARGV[2 * i + 1]
  if own(src, group, id, me) then
    -- A client that is gone has no stream, and gets none; a key of another type is not its stream.
    local stored = redis.pcall('XADD', KEYS[i], 'NOMKSTREAM', '*', 'r', envelope)
    results[#results + 1] = type(stored) == 'string' and 1 or 0
    finish(src, group, id, retry)
  else
    results[#results + 1] = -1
  end
end
return results
