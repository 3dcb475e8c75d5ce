-- Ends a delivery: as done, as a dead letter, or discarded, with or without a reply.
-- KEYS: source, dead, reply stream (if the reply is stored).
-- ARGV: group, consumer, id, '1' on the retry stream, envelope, channel (if it is published), the
--       state and the id of its task, if the task has a record ('' = it has none), the result, the
--       length of a result that is too large, the progress ('' = none), the idempotency key to free
--       ('' = none) and the id that was sent with it, and for a dead letter: origin, attempts,
--       reason, how many to keep.
-- Returns: {1 ended | 0 not pending for this consumer | 2 ended without a dead letter, since the
--           entry was deleted, dead letters dropped, 1 replied | 0 not possible}.
local src, group, id, retry = KEYS[1], ARGV[1], ARGV[3], ARGV[4] == '1'
if not own(src, group, id, ARGV[2]) then return { 0, 0, 0 } end
local outcome, dropped = 1, 0
local entry = (ARGV[14] or retry) and redis.call('XRANGE', src, id, id)[1]
if ARGV[14] then
  if entry then
    -- `sent` removes the internal fields. Otherwise a replay would use those that a sender has set.
    local fields = sent(entry[2], retry)
    dropped = dead_letter(redis.call, KEYS[2], group, ARGV[14], ARGV[16], ARGV[15], fields, ARGV[17])
  else
    outcome = 2
  end
end
local base = base_of(KEYS[2], ':dead:' .. group)
if ARGV[8] ~= '' then
  local outcome = { 'result', ARGV[9], 'result_too_large', ARGV[10], 'progress', ARGV[11] }
  ended(base, group, ARGV[8], ARGV[7], ARGV[16] or '', outcome)
end
if ARGV[12] ~= '' then free_idempotency(base, ARGV[12], ARGV[13]) end
local answered = answer(KEYS[3], ARGV[6], ARGV[5])
finish(src, group, id, retry)
if entry then give_back(base, group, entry[2], retry) end
return { outcome, dropped, answered }
