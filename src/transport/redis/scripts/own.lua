-- Makes a member the owner of a partition, if the partition is free or its owner is dead.
-- KEYS: owner, a hash. ARGV: member, its consumer for this term, then the dead members.
-- Returns: {the new term} | {0, the owner}.
local owner = redis.call('HGET', KEYS[1], 'member')
local free = not owner or owner == '' or owner == ARGV[1]
for i = 3, #ARGV do free = free or owner == ARGV[i] end
if not free then return { 0, owner } end
redis.call('HSET', KEYS[1], 'member', ARGV[1], 'consumer', ARGV[2])
return { redis.call('HINCRBY', KEYS[1], 'term', 1) }
