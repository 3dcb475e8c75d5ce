-- Removes, pauses or resumes a schedule.
-- KEYS: the schedules. ARGV: name, 'remove' | 'pause' | 'resume'.
-- Returns: 1 done, or so already | 0 there is no such schedule.
local key, name, change = KEYS[1], ARGV[1], ARGV[2]
local version, paused, last = unpack(redis.call('HMGET', key, 'version:' .. name, 'paused:' .. name, 'last:' .. name))
if not version then return 0 end
if change == 'remove' then
  for _, part in ipairs(PARTS) do redis.call('HDEL', key, part .. ':' .. name) end
  changed(key)
  return 1
end
if change == 'pause' then
  if paused then return 1 end
  redis.call('HSET', key, 'paused:' .. name, '1')
else
  if not paused then return 1 end
  redis.call('HSET', key, 'last:' .. name, milliseconds(math.max(clock(), tonumber(last))))
  redis.call('HDEL', key, 'paused:' .. name)
end
redis.call('HSET', key, 'revision:' .. name, changed(key))
return 1
