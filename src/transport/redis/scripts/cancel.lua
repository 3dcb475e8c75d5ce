-- Cancels a task: one that is delayed by its sender, or one with a record, in any state.
-- KEYS: stream, retry, due, bodies, the stream's due, the stream's bodies, and the record of the
--       idempotency key, if there is a key.
-- ARGV: group, the task's id, the reason.
-- Returns: 1 cancelled | 0 it has ended, or is unknown.
local stream, retry, group, id = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local base = base_of(retry, 'retry', group)
local record = record_of(base, group, id)
local where, at = place_of(record)
if not where and redis.call('ZSCORE', KEYS[5], id) then where, at = 'due', id end
if not where or not is_there(base, group, stream, where, at) then return 0 end
local has_record = redis.call('EXISTS', record) == 1
if has_record and redis.call('HGET', record, 'state') == 'cancelled' then return 0 end

if where == 'due' or where == 'later' then
  local due, bodies = KEYS[3], KEYS[4]
  if where == 'due' then due, bodies = KEYS[5], KEYS[6] end
  if has_record then ended(base, group, record, id, 'cancelled', ARGV[3]) end
  redis.call('ZREM', due, at)
  redis.call('HDEL', bodies, at)
  if KEYS[7] and redis.call('GET', KEYS[7]) == id then redis.call('DEL', KEYS[7]) end
  return 1
end

local src = where == 'retry' and retry or stream
local good, pending = pcall(redis.call, 'XPENDING', src, group, at, at, 1)
ended(base, group, record, id, 'cancelled', ARGV[3])
-- Its worker reads the reason after it has found that the entry is no longer pending.
local MIN_KEPT = 60000
if redis.call('PTTL', record) < MIN_KEPT then redis.call('PEXPIRE', record, MIN_KEPT) end
if good and type(pending) == 'table' and #pending > 0 then
  finish(src, group, at, where == 'retry')
elseif where == 'retry' then
  redis.call('XDEL', retry, at)
else
  -- Other groups may want the entry, so it stays on the stream. The worker of this group that
  -- fetches it ends it, by the record.
  redis.call('PERSIST', record)
end
return 1
