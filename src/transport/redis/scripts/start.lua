-- Records that a worker starts a task.
-- KEYS: source, dead. ARGV: group, consumer, the entry's id, '1' on the retry stream, the task's id,
--       attempt.
-- Returns: 1 started | 0 not pending for this consumer | 2 ended, since the task was cancelled.
local src, group, entry, retry, id = KEYS[1], ARGV[1], ARGV[3], ARGV[4] == '1', ARGV[5]
if not own(src, group, entry, ARGV[2]) then return 0 end
local base = base_of(KEYS[2], ':dead:' .. group)
local record = record_of(base, group, id)
if is_cancelled(record) then
  end_cancelled(src, group, entry, retry, record)
  return 2
end
if field_of(record, 'state') then
  change(base, group, record, id, 'running', 'attempt', ARGV[6],
    'started', string.format('%.0f', clock()), 'place', (retry and 'retry ' or 'stream ') .. entry)
end
return 1
