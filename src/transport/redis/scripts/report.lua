-- Stores the answer of a worker to a question.
-- KEYS: the answer. ARGV: the answer, ms for which it is kept.
-- Returns: 1.
redis.call('SET', KEYS[1], string.format('%.0f', clock()) .. ' ' .. ARGV[1], 'PX', ARGV[2])
return 1
