-- Counts the pending entries of several streams.
-- KEYS: streams. ARGV: group. Returns: the number of pending entries.
return pending_of(ARGV[1], KEYS)
