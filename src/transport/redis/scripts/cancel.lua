-- Cancels a task that is not due yet, and forgets its idempotency key.
-- KEYS: due, bodies, and the idempotency key's record, if there is a key. ARGV: id.
-- Returns: 1 cancelled | 0 not found.
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
if KEYS[3] and redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
return 1
