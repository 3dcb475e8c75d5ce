-- Moves what is due to a stream: a group's retry stream, or the one that is sent to.
-- KEYS: due, bodies, stream. ARGV: how many at most, and how many bytes.
-- Returns: {moved, lost, ms until the next is due (-1 = there is none)}.
return promote(KEYS[1], KEYS[2], KEYS[3], ARGV[1], tonumber(ARGV[2]))
