-- The records of tasks that are tracked or unique. The record of a task is a hash:
--   state: 'waiting' | 'delayed' | 'running' | 'done' | 'dead' | 'discarded' | 'cancelled'
--   place: where the task is, until it has ended: 'stream' or 'retry' and the entry's id, or 'due'
--          (delayed by its sender) or 'later' (a delayed redelivery) and the member, or 'parked', the
--          parked entry's id and the limit's key
--   name, attempt, reason, and the times in ms: accepted, started, ended
--   keep: for how many ms the record is kept after the end
--   unique: the key that the task holds until it has ended; '' without one
-- A task's entry names the group of its record in the field '~j'.

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

-- Keeps the record of a task that has ended for the time that its sender has chosen.
local function expire(record)
  local keep = tonumber(redis.call('HGET', record, 'keep'))
  redis.call('PEXPIRE', record, string.format('%.0f', math.max(keep, 1)))
end

-- Records the end of a task, if it has a record, and frees the key that it holds.
local function ended(base, group, id, state, reason)
  local record = record_of(base, group, id)
  if not field_of(record, 'state') then return end
  -- First, since Redis refuses only the first write of a script for lack of memory.
  redis.call('HSET', record, 'state', state, 'reason', reason, 'ended', string.format('%.0f', clock()))
  redis.call('HDEL', record, 'place')
  free(base, group, record, id)
  expire(record)
end

-- Returns the two parts of the place of a task that has not ended.
local function place_of(record)
  local place = field_of(record, 'place')
  if place then return string.match(place, '^(%a+) (.+)$') end
end

-- Returns true if a task is still at its place. An entry that another program has deleted is not.
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
