-- Acknowledges on the retry stream, and deletes the entries, which no other group needs. If two
-- commands did this and the worker crashed in between, the entries would stay for ever: nothing
-- deletes entries that are not pending.
-- KEYS: source. ARGV: group, then the ids.
-- Returns: the number of entries deleted.
redis.call('XACK', KEYS[1], unpack(ARGV))
return redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
