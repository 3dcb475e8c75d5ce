-- The permits of the limits that the workers of a group share, and the messages that are parked until
-- they get one:
--   <base>:permits:<length of the group>:<group>:<key>  sorted set: holder → when the permit ends
--   <base>:parked:<length of the group>:<group>:<key>   stream: the parked messages, in order. Before
--         their fields is '~h', the holder of their permit. On the retry stream, '~h' is the first
--         field of a message that was moved there with a permit: '<holder> <key>'.
--   <base>:parking:<group>  sorted set: keys with parked messages → when their next permit ends
--   <base>:limits:<group>   hash: keys with parked messages → '<permits> <ms of a permit>', or for a name
--         'paused' or 'unlimited'
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

-- The limits of a paused name, and of a name whose pause has ended.
local PAUSED, UNLIMITED = 'paused', 'unlimited'

-- Moves the first messages that are parked for a key to the retry stream, each with a permit, while
-- there are free ones. Returns the number of messages moved.
local function hand_over(base, group, key)
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
    if limit == PAUSED then break end
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

-- Hands over the permits that have ended because their workers died. Returns the number of messages
-- moved.
local function hand_over_ended(base, group)
  local KEYS_AT_ONCE = 100
  local now, moved = string.format('%.0f', clock()), 0
  local keys = redis.call('ZRANGEBYSCORE', base .. ':parking:' .. group, '-inf', now, 'LIMIT', 0, KEYS_AT_ONCE)
  for _, key in ipairs(keys) do moved = moved + hand_over(base, group, key) end
  return moved
end
