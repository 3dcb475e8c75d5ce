-- Returns a permit, and hands it to the first message that is parked for it.
-- KEYS: the permits. ARGV: the holder, the prefix of the stream's keys, group, the limit's key.
-- Returns: the number of messages that were moved to the retry stream.
redis.call('ZREM', KEYS[1], ARGV[1])
return hand_over(ARGV[2], ARGV[3], ARGV[4])
