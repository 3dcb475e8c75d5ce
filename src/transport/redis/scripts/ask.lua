-- Asks the workers of a group a question.
-- KEYS: the question. ARGV: an id, 'ping' | 'stats', ms for which the question is valid.
-- Returns: the time on Redis's clock.
local word, before = ARGV[2], redis.pcall('GET', KEYS[1])
-- Another caller may wait for statistics, which answer a ping as well.
if type(before) == 'string' and string.find(before, ' stats', 1, true) then word = 'stats' end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. word, 'PX', ARGV[3])
return string.format('%.0f', clock())
