-- Returns true if the entry is pending for this consumer. False if the group does not exist.
local function own(src, group, id, me)
  local found = redis.pcall('XPENDING', src, group, id, id, 1, me)
  if found.err then
    if string.find(found.err, 'NOGROUP', 1, true) then return false end
    return redis.call('XPENDING', src, group, id, id, 1, me)
  end
  return #found == 1
end

-- Acknowledges an entry. On the retry stream it is deleted too, since no other group needs it.
local function finish(src, group, id, retry)
  redis.call('XACK', src, group, id)
  if retry then redis.call('XDEL', src, id) end
end

-- Redis's clock in milliseconds.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
