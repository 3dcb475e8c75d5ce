-- Cancels a task: one that is delayed by its sender, or one with a record, in any state.
-- KEYS: the stream's due, the stream's bodies.
-- ARGV: group, the task's id, the reason, '1' if the task may have a record, the stream.
-- Returns: 1 cancelled | 0 it has ended, or is unknown.
local due, bodies, group, id = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local base = base_of(due, ':due')
-- KEYS does not list these keys, since a sender may have no right to them. They are in the stream's
-- slot.
local record, stream, retry = nil, ARGV[5], base .. ':retry:' .. group
local where, at = 'due', id
if ARGV[4] == '1' then
  record = record_of(base, group, id)
  where, at = place_of(record)
  if not where then return 0 end
  if redis.call('HGET', record, 'state') == 'cancelled' then return 0 end
end
if not is_there(base, group, stream, where, at) then return 0 end
local src, entry = where == 'retry' and retry or stream, at
if where == 'parked' then
  local key
  entry, key = string.match(at, '^(%S+) (.*)$')
  src = parked_of(base, group, key)
end
if where == 'later' then due, bodies = base .. ':due:' .. group, base .. ':bodies:' .. group end

local fields
if where == 'due' or where == 'later' then
  fields = unpacked(redis.call('HGET', bodies, at) or '') or {}
else
  fields = redis.call('XRANGE', src, entry, entry)[1][2]
end
local key = sent_with(fields, id)

if where == 'due' or where == 'later' then
  if record then ended(base, group, id, 'cancelled', ARGV[3]) end
  redis.call('ZREM', due, at)
  redis.call('HDEL', bodies, at)
  if key then free_idempotency(base, key, id) end
  return 1
end

if where == 'parked' then
  ended(base, group, id, 'cancelled', ARGV[3])
  redis.call('XDEL', src, entry)
  if key then free_idempotency(base, key, id) end
  return 1
end

local good, pending = pcall(redis.call, 'XPENDING', src, group, at, at, 1)
ended(base, group, id, 'cancelled', ARGV[3])
if key then free_idempotency(base, key, id) end
-- The record stays for a while: the task's worker reads the reason from it, after it has found that
-- the entry is no longer pending.
local MIN_KEPT = 60000
if redis.call('PTTL', record) < MIN_KEPT then redis.call('PEXPIRE', record, MIN_KEPT) end
if good and #pending > 0 then
  finish(src, group, at, where == 'retry')
elseif where == 'retry' then
  redis.call('XDEL', retry, at)
else
  -- Other groups may want the entry, so it stays on the stream. A worker of this group that fetches
  -- the entry finds the cancellation in the record, and ends the delivery.
  redis.call('PERSIST', record)
end
give_back(base, group, fields, where == 'retry')
return 1
