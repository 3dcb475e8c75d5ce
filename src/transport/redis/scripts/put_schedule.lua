-- Stores a scheduled task, unless one with a higher version is stored.
-- KEYS: the schedules. ARGV: name, version, definition, ticks, group.
-- Returns: 1 it is stored | 0 a higher version is stored.
local key, name = KEYS[1], ARGV[1]
local fields = { 'version:' .. name, 'definition:' .. name, 'ticks:' .. name, 'group:' .. name }
local version, definition, ticks, group = unpack(redis.call('HMGET', key, unpack(fields)))
if version and tonumber(version) > tonumber(ARGV[2]) then return 0 end
if version == ARGV[2] and definition == ARGV[3] and group == ARGV[5] then return 1 end
redis.call('HSET', key, fields[1], ARGV[2], fields[2], ARGV[3], fields[3], ARGV[4], fields[4], ARGV[5],
  'revision:' .. name, changed(key))
if ticks ~= ARGV[4] then redis.call('HSET', key, 'last:' .. name, milliseconds(clock())) end
return 1
