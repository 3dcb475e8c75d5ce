-- Stores replies and acknowledges their requests, whoever holds them: the first to finish wins. The
-- replies of one client are one entry, one on a line.
-- KEYS: source, then the reply stream of each client. ARGV: group, '1' on the retry stream, then for
--       each client: how many requests, their ids, the replies.
-- Returns for each client: 1 stored, 0 no request was ours any more, 2 ended, but not stored.
local results, at = {}, 3
for i = 2, #KEYS do
  local last = at + ARGV[at]
  local ended = redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, at + 1, last))
  if ARGV[2] == '1' then redis.call('XDEL', KEYS[1], unpack(ARGV, at + 1, last)) end
  results[i - 1] = 0
  -- Where only some were there, the others are answered twice, and their client takes the first.
  if ended > 0 then
    -- A client that is gone has no stream, and gets none; a key of another type is not its stream.
    -- After the first write a server does not refuse this for want of memory.
    local stored = redis.pcall('XADD', KEYS[i], 'NOMKSTREAM', '*', 'r', ARGV[last + 1])
    results[i - 1] = type(stored) == 'string' and 1 or 2
  end
  at = last + 2
end
return results
