-- Takes a permit, or keeps it for longer.
-- KEYS: the permits. ARGV: the number of permits, ms of a permit, the holder.
-- Returns: 1 taken | 0 all are taken.
return take(KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]) and 1 or 0
