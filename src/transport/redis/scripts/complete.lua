-- Ends a delivery as done, and carries out its follow-ups: all or none.
-- KEYS: source, the reply stream (if the reply is stored), then the keys of the follow-ups.
-- ARGV: group, consumer, id, '1' on the retry stream, envelope, channel (if it is published), the
--       number of keys before those of the follow-ups, the prefix of the stream's keys, the id of
--       its task, if the task has a record ('' = it has none), the task's result, the length of a
--       result that is too large, the progress ('' = none), then for each follow-up: its kind, the
--       number of its keys, the number of its arguments, its arguments.
-- Returns: {1 ended | 0 not pending for this consumer, 1 replied | 0 not possible, ''}, or {2, 0,
--          the reason} if a follow-up cannot be carried out. Then nothing was changed.
local src, group, id, retry = KEYS[1], ARGV[1], ARGV[3], ARGV[4] == '1'
if not own(src, group, id, ARGV[2]) then return { 0, 0, '' } end
-- Larger integers are not exact in Lua.
local MAX_DIGITS = 15

-- Returns the integer in a text, or false.
local function integer(text)
  local digits = string.match(text, '^-?(%d+)$')
  return digits ~= nil and #digits <= MAX_DIGITS and tonumber(text)
end

-- For each kind of follow-up: the types and the commands of its keys, and its effect.
local kinds = {
  task = {
    types = { 'stream', 'zset', 'hash', 'string' },
    commands = { 'XADD', 'ZADD', 'HSET', 'SET' },
    run = function(keys, at, last) accept(keys, ARGV, at, last) end,
  },
  -- Arguments: 'now' | 'after' | 'at', ms, then the facts and the fields of the task.
  forward = {
    types = { 'stream' },
    commands = { 'XADD' },
    run = function(keys, at, last)
      local due = 0
      if ARGV[at] == 'after' then due = clock() + ARGV[at + 1] end
      if ARGV[at] == 'at' then due = tonumber(ARGV[at + 1]) end
      redis.call('XADD', keys[1], '*', 'due', string.format('%.0f', due), unpack(ARGV, at + 2, last))
    end,
  },
  increment = {
    types = { 'string' },
    commands = { 'SET' },
    run = function(keys, at)
      local value = integer(redis.call('GET', keys[1]) or '0')
      redis.call('SET', keys[1], string.format('%.0f', value + ARGV[at]), 'KEEPTTL')
    end,
  },
  set = {
    types = {},
    commands = { 'SET' },
    run = function(keys, at) redis.call('SET', keys[1], ARGV[at]) end,
  },
  delete = {
    types = {},
    commands = { 'DEL' },
    run = function(keys) redis.call('DEL', keys[1]) end,
  },
  publish = {
    types = {},
    commands = {},
    -- Without permission to publish on the channel, the delivery still ends.
    run = function(_, at) redis.pcall('PUBLISH', ARGV[at], ARGV[at + 1]) end,
  },
}

-- Calls `act` with each follow-up, until `act` returns a value. Returns that value.
local function each(act)
  local at, key = 13, tonumber(ARGV[7])
  while ARGV[at] do
    local kind, count, last = kinds[ARGV[at]], tonumber(ARGV[at + 1]), at + 2 + ARGV[at + 2]
    local keys = {}
    for i = 1, count do keys[i] = KEYS[key + i] end
    local result = act(kind, keys, at + 3, last)
    if result then return result end
    at, key = last + 1, key + count
  end
end

-- Redis does not undo the writes of a script that fails, so every possible failure is found before
-- the first write.

-- For each key of a follow-up: the integer that it will hold, or false if it will not hold one.
local values = {}
local function fault(kind, keys, at)
  for i, name in ipairs(keys) do
    local found, expected = redis.call('TYPE', name).ok, kind.types[i]
    if expected and found ~= 'none' and found ~= expected then
      return 'the key `' .. name .. '` is a ' .. found .. ' and not a ' .. expected
    end
    -- Redis 6.2 cannot say what is permitted.
    if redis.acl_check_cmd and kind.commands[i] and not redis.acl_check_cmd(kind.commands[i], name) then
      return 'the worker has no permission for `' .. kind.commands[i] .. '` on `' .. name .. '`'
    end
  end
  local key = keys[1]
  if kind == kinds.set then values[key] = integer(ARGV[at]) end
  if kind == kinds.delete then values[key] = 0 end
  if kind == kinds.increment then
    if values[key] == nil then values[key] = integer(redis.call('GET', key) or '0') end
    local sum = values[key] and values[key] + ARGV[at]
    if not sum or not integer(string.format('%.0f', sum)) then
      return 'the value of `' .. key .. '` is not an integer of at most 15 digits'
    end
    values[key] = sum
  end
end
local reason = each(fault)
if reason then return { 2, 0, reason } end

-- A script that runs out of memory fails at its first write, and an event cannot be taken back. So
-- events are published after the writes.
each(function(kind, keys, at, last) if kind ~= kinds.publish then kind.run(keys, at, last) end end)
if ARGV[9] ~= '' then
  local outcome = { 'result', ARGV[10], 'result_too_large', ARGV[11], 'progress', ARGV[12] }
  ended(ARGV[8], group, ARGV[9], 'done', '', outcome)
end
local stored = tonumber(ARGV[7]) > 1 and KEYS[2] or nil
local answered = answer(stored, ARGV[6], ARGV[5])
each(function(kind, keys, at, last) if kind == kinds.publish then kind.run(keys, at, last) end end)
finish(src, group, id, retry)
return { 1, answered, '' }
