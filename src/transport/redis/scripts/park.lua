-- Parks a delivery until it gets a permit, until its name is resumed, or until there is a newer worker.
-- KEYS: source, retry.
-- ARGV: group, consumer, id, '1' on the retry stream, origin, attempts before this delivery, the
--       limit's key, the number of permits ('' for a paused name, 'newer' for a newer worker), ms of a
--       permit, the holder, the field of the name's pause.
-- Returns: 1 parked | 0 not pending for this consumer | 2 ended, since the entry was deleted |
--          3 ended, since the task was cancelled.
local src, group, id, retry = KEYS[1], ARGV[1], ARGV[3], ARGV[4] == '1'
local base, key = base_of(KEYS[2], ':retry:' .. group), ARGV[7]
local code, fields, record, task = to_move(base, src, group, ARGV[2], id, retry)
if code ~= 1 then return code end
local copy = { '~h', ARGV[10], '~o', ARGV[5], '~a', ARGV[6] }
append(copy, sent(fields, retry))
local at = redis.call('XADD', parked_of(base, group, key), '*', unpack(copy))
local limit = ARGV[8] .. ' ' .. ARGV[9]
if ARGV[8] == '' then
  -- The pause may have ended since this worker read it.
  limit = redis.call('HEXISTS', base .. ':control', ARGV[11]) == 1 and PAUSED or UNLIMITED
elseif ARGV[8] == NEWER then
  limit = NEWER
end
redis.call('HSET', base .. ':limits:' .. group, key, limit)
if record then
  change(base, group, record, task, 'waiting', 'place', 'parked ' .. at .. ' ' .. key, 'attempt', ARGV[6])
end
finish(src, group, id, retry)
-- The delivery may have a permit of another key.
give_back(base, group, fields, retry)
-- A permit may have been returned since this delivery was refused one.
hand_over(base, group, key)
return 1
