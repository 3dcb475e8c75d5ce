-- Stores a field of the record of a running task.
-- KEYS: source, dead. ARGV: group, consumer, the entry's id, the task's id, the field, its value.
-- Returns: 1 stored | 0 not pending for this consumer, or without a record.
local group, id = ARGV[1], ARGV[4]
if not own(KEYS[1], group, ARGV[3], ARGV[2]) then return 0 end
local record = record_of(base_of(KEYS[2], ':dead:' .. group), group, id)
if field_of(record, 'state') ~= 'running' then return 0 end
redis.call('HSET', record, ARGV[5], ARGV[6])
return 1
