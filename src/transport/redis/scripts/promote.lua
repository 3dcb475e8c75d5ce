-- Moves due messages to a stream: a group's retry stream, or the primary stream.
-- KEYS: due, bodies, stream. ARGV: most messages, most bytes.
-- Returns: {moved, lost, ms until the next is due (-1 = there is none)}.
return promote(KEYS[1], KEYS[2], KEYS[3], ARGV[1], tonumber(ARGV[2]))
