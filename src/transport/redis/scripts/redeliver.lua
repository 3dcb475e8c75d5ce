-- Moves a delivery to the retry stream, now or later.
-- KEYS: source, retry, due, bodies.
-- ARGV: group, consumer, id, '1' on the retry stream, origin, attempts, delay in ms ('' = now),
--       the reason (for the task's record), the number of redeliveries in a row that did not count.
-- Returns: 1 moved | 0 not pending for this consumer | 2 ended, since the entry was deleted |
--          3 ended, since the task was cancelled.
local src, group, id, retry = KEYS[1], ARGV[1], ARGV[3], ARGV[4] == '1'
local base = base_of(KEYS[2], ':retry:' .. group)
local code, fields, record, task = to_move(base, src, group, ARGV[2], id, retry)
if code ~= 1 then return code end
local place
local copy = { '~o', ARGV[5], '~a', ARGV[6] }
if ARGV[9] ~= '0' then
  copy[5], copy[6] = '~u', ARGV[9]
end
append(copy, sent(fields, retry))
if ARGV[7] == '' then
  place = 'retry ' .. redis.call('XADD', KEYS[2], '*', unpack(copy))
else
  -- The member is unique, since the id of an entry is used only once.
  local member = (retry and 'r' or 's') .. id
  redis.call('ZADD', KEYS[3], string.format('%.0f', clock() + ARGV[7]), member)
  redis.call('HSET', KEYS[4], member, cmsgpack.pack(copy))
  place = 'later ' .. member
end
if record then
  local state = ARGV[7] == '' and 'waiting' or 'delayed'
  change(base, group, record, task, state, 'place', place, 'attempt', ARGV[6], 'reason', ARGV[8])
end
finish(src, group, id, retry)
give_back(base, group, fields, retry)
return 1
