-- Whether the entry is pending for this worker. A group that is gone owns nothing.
local function own(src, group, id, me)
  local found = redis.pcall('XPENDING', src, group, id, id, 1, me)
  if found.err then
    if string.find(found.err, 'NOGROUP', 1, true) then return false end
    return redis.call('XPENDING', src, group, id, id, 1, me)
  end
  return #found == 1
end

-- Which of these entries, in ascending order, are pending for this worker: one look at the range
-- that they span, and one more at each that a crowd in that range has hidden.
local function owned(src, group, ids, me)
  local mine, most = {}, 2 * #ids
  local found = redis.pcall('XPENDING', src, group, ids[1], ids[#ids], most, me)
  if found.err or #found == most then
    for i = 1, #ids do mine[ids[i]] = own(src, group, ids[i], me) end
  else
    for i = 1, #found do mine[found[i][1]] = true end
  end
  return mine
end

-- Acknowledges an entry. On the retry stream nobody else needs it then, so it goes.
local function finish(src, group, id, retry)
  redis.call('XACK', src, group, id)
  if retry then redis.call('XDEL', src, id) end
end

-- Redis's clock in milliseconds.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
