-- Returns the number of entries of a stream that a group has not read: `info` is what the server says
-- about the group. Redis does not know the number before 7.0, nor if entries that the group has not
-- read were deleted. Then returns nil, or if `most` is given, counts the entries one by one, and stops
-- once there are more than `most`. If `roughly`, returns the length of a stream that is far shorter
-- than `most`, which is at least the number.
local function unread(stream, info, most, roughly)
  if info.lag then return info.lag end
  local delivered = info['last-delivered-id']
  if delivered == '0-0' then return redis.call('XLEN', stream) end
  local found = redis.call('XRANGE', stream, '(' .. delivered, '+', 'COUNT', 1)
  if #found == 0 then return 0 end
  if not most then return nil end
  if roughly then
    local length = redis.call('XLEN', stream)
    if length <= most / 2 then return length end
  end
  local count = 0
  while #found > 0 and count <= most do
    count = count + #found
    found = redis.call('XRANGE', stream, '(' .. found[#found][1], '+', 'COUNT', 500)
  end
  return count
end

-- Returns the number of messages on the retry stream that are not delivered. Finished entries are
-- deleted from it, so all that are not pending wait.
local function undelivered(retry, info)
  if not info then return 0 end
  return math.max(0, redis.call('XLEN', retry) - info.pending)
end

-- Returns the age in ms of the oldest message that could be delivered to a group, or -1.
local function oldest_waiting(stream, info, retry, retry_info)
  local oldest = -1
  local function look(key, of_group)
    local found = redis.call('XRANGE', key, '(' .. of_group['last-delivered-id'], '+', 'COUNT', 1)[1]
    if found then oldest = math.max(oldest, clock() - string.match(found[1], '^%d+')) end
  end
  look(stream, info)
  if retry_info then look(retry, retry_info) end
  return oldest
end

-- Returns the number of a group's live consumers on a stream, and the number of entries that are
-- pending for them.
local function live_consumers(stream, group, prefix, lease, foreign)
  local alive, running = 0, 0
  for _, list in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    local consumer = {}
    for i = 1, #list, 2 do consumer[list[i]] = list[i + 1] end
    if consumer.idle < lease_of(consumer.name, prefix, lease, foreign) then
      alive, running = alive + 1, running + consumer.pending
    end
  end
  return alive, running
end

-- Returns the number of messages that are parked for a group, of at most 1,000 keys. `index` is the key
-- of their index.
local function parked(index, group)
  local count, MOST_KEYS = 0, 1000
  local base = string.sub(index, 1, -(#':parking:' + #group + 1))
  for _, key in ipairs(redis.call('ZRANGE', index, 0, MOST_KEYS - 1)) do
    count = count + redis.call('XLEN', base .. ':parked:' .. #group .. ':' .. group .. ':' .. key)
  end
  return count
end
