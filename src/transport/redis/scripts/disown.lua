-- Frees a partition, if this member owns it.
-- KEYS: owner. ARGV: member.
-- Returns: 1 freed | 0 it has another owner, or none.
if redis.call('HGET', KEYS[1], 'member') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'member', '', 'consumer', '')
return 1
