-- Moves due messages to a stream: a group's retry stream, or the primary stream.
-- KEYS: due, bodies, stream. ARGV: most messages, most bytes, the group, or '' for the messages of
--       senders.
-- Returns: {moved, lost, ms until the next is due (-1 = there is none)}.
local group, base = ARGV[3], string.sub(KEYS[1], 1, -5)
if group ~= '' then base = base_of(KEYS[1], 'due', group) end
local where = group == '' and 'stream' or 'retry'
return promote(base, where, KEYS[1], KEYS[2], KEYS[3], ARGV[1], tonumber(ARGV[2]))
