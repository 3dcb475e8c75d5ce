-- Registers a stream for the workers that serve the registry.
-- KEYS: registry. ARGV: stream.
return redis.call('ZADD', KEYS[1], string.format('%.0f', clock()), ARGV[1])
