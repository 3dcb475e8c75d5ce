-- Lists the schedules of a stream.
-- KEYS: the schedules. ARGV: the number of changes that the caller knows; '' if it knows none.
-- Returns: ms on Redis's clock, the number of changes, and all fields unless that number is known.
local changes = redis.call('HGET', KEYS[1], 'changes') or '0'
local now = string.format('%.0f', clock())
if changes == ARGV[1] then return { now, changes } end
return { now, changes, redis.call('HGETALL', KEYS[1]) }
