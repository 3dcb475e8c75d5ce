-- The records of tasks that are tracked or unique. The record of a task is a hash:
--   state: 'waiting' | 'delayed' | 'running' | 'done' | 'dead' | 'discarded' | 'cancelled'
--   place: where the task is, until it has ended: 'stream' or 'retry' and the entry's id, or 'due'
--          (delayed by its sender) or 'later' (a delayed redelivery) and the member, or 'parked', the
--          parked entry's id and the limit's key
--   name, attempt, reason, and the times in ms: accepted, started, ended
--   keep: for how many ms the record is kept after the end
--   unique: the key that the task holds until it has ended; '' without one
--   progress, checkpoint: JSON of the handler; the checkpoint is deleted at the end
--   result: the payload of the handler's reply, or result_too_large: its length
-- A task's entry names the group of its record in the field '~j'.
-- Each group has a list of its tasks for each state, a sorted set by the time of the last change,
-- and a feed, a stream of the changes.

-- The maximum number of tasks in the list of each final state.
local MOST_ENDED = 10000
-- The approximate number of changes in the feed, and for how many ms it is kept after the last one.
local MOST_CHANGES, KEEP_CHANGES = 10000, 604800000

-- Returns the prefix of the keys of a stream, from the key with this end.
local function base_of(key, ending) return string.sub(key, 1, -(#ending + 1)) end

local function record_of(base, group, id) return base .. ':task:' .. group .. ':' .. id end

-- Returns a field of a record, or false without the record or the field.
local function field_of(record, field)
  return redis.call('TYPE', record).ok == 'hash' and redis.call('HGET', record, field)
end

-- Returns the record of an entry's task, and the task's id. Nil if the task has no record of this
-- group.
local function recorded(base, group, fields)
  local owner, id
  for i = 1, #fields, 2 do
    if fields[i] == '~j' then owner = fields[i + 1] end
    if fields[i] == '~i' then id = fields[i + 1] end
  end
  if owner ~= group or not id then return nil end
  local record = record_of(base, group, id)
  if field_of(record, 'state') then return record, id end
end

-- Returns the key that stores the id of the task that holds a unique key. The length of the group
-- keeps it apart from the keys of other groups.
local function holder_of(base, group, unique)
  return base .. ':unique:' .. #group .. ':' .. group .. ':' .. unique
end

-- Returns true if a task was cancelled while it waited on a stream. Its record then stays until a
-- worker fetches the entry.
local function is_cancelled(record) return field_of(record, 'state') == 'cancelled' end

-- Returns the stream of the messages that are parked for a key of a limit. The length of the group
-- keeps it apart from those of other groups.
local function parked_of(base, group, key)
  return base .. ':parked:' .. #group .. ':' .. group .. ':' .. key
end

-- Frees the key that a task holds.
local function free(base, group, record, id)
  local unique = redis.call('HGET', record, 'unique')
  if not unique or unique == '' then return end
  local key = holder_of(base, group, unique)
  if redis.call('GET', key) == id then redis.call('DEL', key) end
end

local function list_of(base, group, state) return base .. ':tasks:' .. state .. ':' .. group end

local function has_ended(state) return state ~= 'waiting' and state ~= 'delayed' and state ~= 'running' end

-- Changes the state of a task, with further fields of its record: field, value…. Also updates the lists
-- and the feed. Their errors, such as a missing right or another type, are ignored, so that they do not
-- stop the task.
local function change(base, group, record, id, state, ...)
  local before = redis.call('HMGET', record, 'state', 'attempt')
  -- This is the first write, since Redis refuses only the first write of a script for lack of
  -- memory.
  redis.call('HSET', record, 'state', state, ...)
  local now = redis.call('HMGET', record, 'name', 'attempt', 'reason', 'keep')
  -- A script that is sent again changes nothing.
  if before[1] == state and before[2] == now[2] then return end
  local time, keep = string.format('%.0f', clock()), tonumber(now[4]) or 0
  if before[1] then redis.pcall('ZREM', list_of(base, group, before[1]), id) end
  local list, ended = list_of(base, group, state), has_ended(state)
  if not ended or keep > 0 then redis.pcall('ZADD', list, time, id) end
  if ended and keep > 0 then
    redis.pcall('ZREMRANGEBYRANK', list, 0, -MOST_ENDED - 1)
    local left = redis.pcall('PTTL', list)
    if type(left) == 'number' and left < keep then
      redis.pcall('PEXPIRE', list, string.format('%.0f', keep))
    end
  end
  local feed = base .. ':feed:' .. group
  redis.pcall('XADD', feed, 'MAXLEN', '~', MOST_CHANGES, '*', 'id', id, 'name', now[1] or '',
    'state', state, 'attempt', now[2] or 0, 'reason', now[3] or '')
  redis.pcall('PEXPIRE', feed, KEEP_CHANGES)
end

-- Keeps the record of a task that has ended for the time that its sender has chosen.
local function expire(record)
  local keep = tonumber(redis.call('HGET', record, 'keep'))
  redis.call('PEXPIRE', record, string.format('%.0f', math.max(keep, 1)))
end

-- Ends a delivery of a task that was cancelled while it waited.
local function end_cancelled(src, group, id, retry, record)
  finish(src, group, id, retry)
  expire(record)
end

-- Records the end of a task, if it has a record, and frees the key that it holds. The outcome is a
-- list of further fields of the record: field, value…. Those with an empty value are left out.
local function ended(base, group, id, state, reason, outcome)
  local record = record_of(base, group, id)
  if not field_of(record, 'state') then return end
  local fields = { 'reason', reason, 'ended', string.format('%.0f', clock()) }
  outcome = outcome or {}
  for i = 1, #outcome, 2 do
    if outcome[i + 1] ~= '' then
      fields[#fields + 1] = outcome[i]
      fields[#fields + 1] = outcome[i + 1]
    end
  end
  change(base, group, record, id, state, unpack(fields))
  redis.call('HDEL', record, 'place', 'checkpoint')
  free(base, group, record, id)
  expire(record)
end

-- Returns the two parts of the place of a task that has not ended.
local function place_of(record)
  local place = field_of(record, 'place')
  if place then return string.match(place, '^(%a+) (.+)$') end
end

-- Returns true if a task is still at its place: another program may have deleted the entry.
local function is_there(base, group, stream, where, at)
  if where == 'stream' then return #redis.call('XRANGE', stream, at, at) > 0 end
  if where == 'retry' then return #redis.call('XRANGE', base .. ':retry:' .. group, at, at) > 0 end
  if where == 'parked' then
    local entry, key = string.match(at, '^(%S+) (.*)$')
    return #redis.call('XRANGE', parked_of(base, group, key), entry, entry) > 0
  end
  if where == 'due' then return redis.call('ZSCORE', base .. ':due', at) end
  if where == 'later' then return redis.call('ZSCORE', base .. ':due:' .. group, at) end
end
