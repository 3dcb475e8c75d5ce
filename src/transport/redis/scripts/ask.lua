-- Asks the workers of a group a question.
-- KEYS: the question. ARGV: an id, 'ping' | 'stats' | 'describe', ms for which the question is valid.
-- Returns: the time on Redis's clock.
local word, before = ARGV[2], redis.pcall('GET', KEYS[1])
-- If an earlier question that asks for more is still open, its word stays: statistics also answer a
-- ping, and a description answers both.
local rank = { ping = 1, stats = 2, describe = 3 }
local asked = type(before) == 'string' and string.match(before, ' (%a+)$')
if (rank[asked] or 0) > rank[word] then word = asked end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. word, 'PX', ARGV[3])
return string.format('%.0f', clock())
