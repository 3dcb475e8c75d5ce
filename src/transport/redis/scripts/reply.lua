-- Stores replies and acknowledges their requests, even if they are pending for another consumer:
-- the first to finish wins. The replies to one client are one entry, one reply per line.
-- KEYS: source, then the reply stream of each client. ARGV: group, '1' on the retry stream, then
--       for each client: the number of requests, their ids, the replies.
-- Returns for each client: 1 stored | 0 no request was pending | 2 acknowledged, but not stored.
local results, at = {}, 3
for i = 2, #KEYS do
  local last = at + ARGV[at]
  local ended = redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, at + 1, last))
  if ARGV[2] == '1' then redis.call('XDEL', KEYS[1], unpack(ARGV, at + 1, last)) end
  results[i - 1] = 0
  -- If only some were pending, the others get a second reply, and their client ignores it.
  if ended > 0 then
    -- Does not create the stream: a client that has ended must not get a new one. A key of another
    -- type is an error, and the reply is then not stored. Redis refuses a script without memory
    -- only before its first write, so there is no such error here.
    local stored = redis.pcall('XADD', KEYS[i], 'NOMKSTREAM', '*', 'r', ARGV[last + 1])
    results[i - 1] = type(stored) == 'string' and 1 or 2
  end
  at = last + 2
end
return results
