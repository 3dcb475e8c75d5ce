-- The permits of the limits that the workers of a group share, and the messages that are parked until
-- they get one:
--   <base>:permits:<length of the group>:<group>:<key>  sorted set: holder → when the permit ends
--   <base>:parked:<length of the group>:<group>:<key>   stream: the parked messages, in order. Before
--         their fields is '~h', the holder of their permit. On the retry stream, '~h' is the first
--         field of a message that was moved there with a permit: '<holder> <key>'.
--   <base>:parking:<group>  sorted set: keys with parked messages → when their next permit ends
--   <base>:limits:<group>   hash: keys with parked messages → '<permits> <ms of a permit>', or for a name
--         'paused' or 'unlimited', or for a version of a name that workers are too old for 'newer'
-- The length of the group keeps the keys of groups apart.
local function permits_of(base, group, key)
  return base .. ':permits:' .. #group .. ':' .. group .. ':' .. key
end

-- Takes a permit, or keeps it for longer. Returns false if all are taken.
local function take(permits, most, life, holder)
  local now = clock()
  redis.call('ZREMRANGEBYSCORE', permits, '-inf', string.format('%.0f', now))
  if not redis.call('ZSCORE', permits, holder) and redis.call('ZCARD', permits) >= most then
    return false
  end
  redis.call('ZADD', permits, string.format('%.0f', now + life), holder)
  -- The permits of dead workers are removed only by a later call. The key expires with its last
  -- permit, which need not be this one: the leases of workers may differ.
  local last = redis.call('ZRANGE', permits, -1, -1, 'WITHSCORES')[2]
  redis.call('PEXPIRE', permits, string.format('%.0f', last - now))
  return true
end

-- The limits of a paused name, of a name whose pause has ended, and of messages that wait for a newer
-- worker.
local PAUSED, UNLIMITED, NEWER = 'paused', 'unlimited', 'newer'

-- The time of the next look at a key whose messages wait for a newer worker is this number plus their
-- version. No clock gets there, so only workers that know the version look at the key.
local NEWER_FROM = 1000000000000000

-- Returns the name and the version of a key whose messages wait for a newer worker.
local function version_of(key)
  local name, version = string.match(key, '^:(.*)\n(%d+)$')
  return name, tonumber(version)
end

-- Moves the first messages that are parked for a key to the retry stream, each with a permit, while
-- there are free ones. Messages that wait for a newer worker are moved if `is_known`: if this worker
-- knows their version. Returns the number of messages moved.
local function hand_over(base, group, key, is_known)
  local MOST_AT_ONCE, MOST_BYTES = 500, 4194304
  local parked, index, limits = parked_of(base, group, key), base .. ':parking:' .. group, base .. ':limits:' .. group
  local limit = redis.call('HGET', limits, key)
  if not limit then return 0 end
  local permits, most, life = permits_of(base, group, key), string.match(limit, '^(%d+) (%d+)$')
  local moved, bytes, next_look = 0, 0, '+inf'
  local function first() return redis.call('XRANGE', parked, '-', '+', 'COUNT', 1)[1] end
  local entry = first()
  while entry do
    if moved == MOST_AT_ONCE or bytes >= MOST_BYTES then
      next_look = 0
      break
    end
    if limit == PAUSED or limit == NEWER and not is_known then break end
    if most and not take(permits, tonumber(most), tonumber(life), entry[2][2]) then
      next_look = redis.call('ZRANGE', permits, 0, 0, 'WITHSCORES')[2]
      break
    end
    local fields = most and { '~h', entry[2][2] .. ' ' .. key } or {}
    for i = 3, #entry[2] do
      fields[#fields + 1] = entry[2][i]
      bytes = bytes + #entry[2][i]
    end
    local record = recorded(base, group, unpacked_entry(fields))
    local at = redis.call('XADD', base .. ':retry:' .. group, '*', unpack(fields))
    if record then redis.call('HSET', record, 'place', 'retry ' .. at) end
    redis.call('XDEL', parked, entry[1])
    moved = moved + 1
    entry = first()
  end
  if entry then
    if limit == NEWER then
      local _, version = version_of(key)
      next_look = string.format('%.0f', NEWER_FROM + version)
    end
    redis.call('ZADD', index, next_look, key)
  else
    redis.call('DEL', parked)
    redis.call('ZREM', index, key)
    redis.call('HDEL', limits, key)
  end
  return moved
end

-- Returns the permit with which an entry was moved to the retry stream. Called when the delivery of
-- the entry ends. Has no effect if the permit was returned before.
local function give_back(base, group, fields, retry)
  if not retry or fields[1] ~= '~h' then return end
  local holder, key = string.match(fields[2], '^(%S+) (.*)$')
  if not holder then return end
  redis.call('ZREM', permits_of(base, group, key), holder)
  hand_over(base, group, key)
end

-- Hands over the permits that have ended because their workers died, and the messages that older
-- workers have left to this one. `newest` is the highest version that this worker knows, and `lines`
-- has each name and its version. Returns the number of messages moved.
local function hand_over_due(base, group, newest, lines)
  local KEYS_AT_ONCE, index, moved = 100, base .. ':parking:' .. group, 0
  local function due(from, to)
    return ipairs(redis.call('ZRANGEBYSCORE', index, from, string.format('%.0f', to), 'LIMIT', 0, KEYS_AT_ONCE))
  end
  for _, key in due('-inf', clock()) do moved = moved + hand_over(base, group, key) end
  if newest == 0 then return moved end
  local known
  for _, key in due(string.format('%.0f', NEWER_FROM), NEWER_FROM + newest) do
    if not known then
      known = {}
      for name, version in string.gmatch(lines, '([^\n]+)\n(%d+)\n') do known[name] = tonumber(version) end
    end
    local name, version = version_of(key)
    if version <= (known[name] or 0) then moved = moved + hand_over(base, group, key, true) end
  end
  return moved
end
