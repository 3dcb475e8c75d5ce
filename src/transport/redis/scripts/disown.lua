-- Frees a partition, if its term has not changed.
-- KEYS: owner. ARGV: term.
-- Returns: 1 freed | 0 it has another owner.
if redis.call('HGET', KEYS[1], 'term') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'member', '', 'consumer', '')
return 1
