-- Acknowledges on the retry stream: nobody else needs an entry there then, so it goes. Were it two
-- commands, a worker could end between them, and nobody deletes what is not pending.
-- KEYS: source. ARGV: group, then the ids.
-- Returns: how many there were.
redis.call('XACK', KEYS[1], unpack(ARGV))
return redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
