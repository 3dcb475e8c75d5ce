-- Records the names that a worker serves, and lists those of the other workers of its groups.
-- KEYS: the lists of each stream's group, by the time of their last record. ARGV: the worker's
--       list, ms after which a list is forgotten, the maximum number of lists that are kept.
-- Returns: for each key the lists of other workers.
local now, found = clock(), {}
for i, key in ipairs(KEYS) do
  redis.call('ZADD', key, string.format('%.0f', now), ARGV[1])
  -- Removes the lists that no worker has renewed. A list with a time in the future was renewed
  -- before the clock stepped back, and is removed, too.
  local bounds = {
    { '-inf', string.format('(%.0f', now - ARGV[2]) },
    { string.format('(%.0f', now), '+inf' },
  }
  for _, bound in ipairs(bounds) do
    for _, list in ipairs(redis.call('ZRANGEBYSCORE', key, bound[1], bound[2])) do
      redis.call('ZREM', key, list)
    end
  end
  local lists, others = redis.call('ZRANGE', key, 0, -1), {}
  for n, list in ipairs(lists) do
    if n <= #lists - ARGV[3] then
      redis.call('ZREM', key, list)
    elseif list ~= ARGV[1] then
      others[#others + 1] = list
    end
  end
  -- Without permission for PEXPIRE, a small key remains.
  redis.pcall('PEXPIRE', key, ARGV[2])
  found[i] = others
end
return found
