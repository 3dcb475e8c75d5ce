-- Takes a task back that is not due yet, and forgets its idempotency key.
-- KEYS: due, bodies, and what remembers the key, where there is one. ARGV: id.
-- Returns: 1 taken back | 0 not there.
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
if KEYS[3] and redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
return 1
