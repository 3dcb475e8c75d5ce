-- Moves due messages to a stream: a group's retry stream, or the primary stream.
-- KEYS: due, bodies, stream. ARGV: max messages, max bytes, the group, or '' for the messages of
--       senders.
-- Returns: {moved, lost, ms until the next is due (-1 = there is none)}.
local ending, where = ':due', 'stream'
if ARGV[3] ~= '' then ending, where = ':due:' .. ARGV[3], 'retry' end
return promote(base_of(KEYS[1], ending), where, KEYS[1], KEYS[2], KEYS[3], ARGV[1], tonumber(ARGV[2]))
