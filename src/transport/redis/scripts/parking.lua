-- The permits of the limits that the workers of a group share, and the messages that are parked until
-- they get one:
--   <base>:permits:<length of the group>:<group>:<key>  sorted set: holder → when the permit ends
--   <base>:parked:<length of the group>:<group>:<key>   stream: the parked messages, in order. Before
--         their fields is '~h', the holder of their permit.
--   <base>:parking:<group>  sorted set: keys with parked messages → when a permit of theirs ends next
--   <base>:limits:<group>   hash: keys with parked messages → '<permits> <ms of a permit>'
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
  -- A permit of an ended worker is removed by the next one that takes a permit, if there is one.
  redis.call('PEXPIRE', permits, life)
  return true
end

-- Moves the first messages that are parked for a key to the retry stream, each with a permit, while
-- there are free ones. Returns the number of messages moved.
local function hand_over(base, group, key)
  local parked, index, limits = parked_of(base, group, key), base .. ':parking:' .. group, base .. ':limits:' .. group
  local most, life = string.match(redis.call('HGET', limits, key) or '', '^(%d+) (%d+)$')
  if not most then return 0 end
  local MOST_AT_ONCE = 100
  local permits, moved = permits_of(base, group, key), 0
  local first = redis.call('XRANGE', parked, '-', '+', 'COUNT', 1)[1]
  while first and moved < MOST_AT_ONCE and take(permits, tonumber(most), tonumber(life), first[2][2]) do
    local fields = { unpack(first[2], 3) }
    local record = recorded(base, group, fields)
    local entry = redis.call('XADD', base .. ':retry:' .. group, '*', unpack(fields))
    if record then redis.call('HSET', record, 'place', 'retry ' .. entry) end
    redis.call('XDEL', parked, first[1])
    moved = moved + 1
    first = redis.call('XRANGE', parked, '-', '+', 'COUNT', 1)[1]
  end
  if first then
    local ends = redis.call('ZRANGE', permits, 0, 0, 'WITHSCORES')[2]
    redis.call('ZADD', index, moved < MOST_AT_ONCE and ends or 0, key)
  else
    redis.call('DEL', parked)
    redis.call('ZREM', index, key)
    redis.call('HDEL', limits, key)
  end
  return moved
end

-- Hands over the permits that have ended since workers died. Returns the number of messages moved.
local function hand_over_ended(base, group)
  local KEYS_AT_ONCE = 20
  local now, moved = string.format('%.0f', clock()), 0
  local keys = redis.call('ZRANGEBYSCORE', base .. ':parking:' .. group, '-inf', now, 'LIMIT', 0, KEYS_AT_ONCE)
  for _, key in ipairs(keys) do moved = moved + hand_over(base, group, key) end
  return moved
end
