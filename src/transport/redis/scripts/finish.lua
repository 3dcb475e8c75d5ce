-- Ends a delivery: as a dead letter or without a trace, with or without a reply.
-- KEYS: source, dead, reply (where the reply is stored).
-- ARGV: group, consumer, id, '1' on the retry stream, envelope, channel (where it is published),
--       and for a dead letter: origin, attempts, reason, how many to keep.
-- Returns: {1 ended | 0 not ours | 2 ended without a dead letter, since somebody deleted the entry,
--           dead letters dropped, 1 answered | 0 could not be}.
local src, group, id, retry = KEYS[1], ARGV[1], ARGV[3], ARGV[4] == '1'
if not own(src, group, id, ARGV[2]) then return { 0, 0, 0 } end
local ended, dropped, answered = 1, 0, 0
if ARGV[7] then
  local entry = redis.call('XRANGE', src, id, id)[1]
  if entry then
    -- A sender's fields of these names would be taken for the transport's own by a replay.
    local fields = sent(entry[2], retry)
    dropped = bury(redis.call, KEYS[2], group, ARGV[7], ARGV[9], ARGV[8], fields, ARGV[10])
  else
    ended = 2
  end
end
if KEYS[3] then
  -- A client that is gone has no stream, and gets none.
  if redis.call('XADD', KEYS[3], 'NOMKSTREAM', '*', 'r', ARGV[5]) then answered = 1 end
elseif ARGV[6] ~= '' then
  -- A channel that this worker may not publish on must not keep the delivery alive.
  if type(redis.pcall('PUBLISH', ARGV[6], ARGV[5])) == 'number' then answered = 1 end
end
finish(src, group, id, retry)
return { ended, dropped, answered }
