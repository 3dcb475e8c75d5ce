-- Acknowledges on the retry stream, and deletes the entries, which no other group needs. With two
-- commands a worker could crash in between, and nothing deletes entries that are not pending.
-- KEYS: source. ARGV: group, then the ids.
-- Returns: the number of entries deleted.
redis.call('XACK', KEYS[1], unpack(ARGV))
return redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
