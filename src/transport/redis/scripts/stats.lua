-- The statistics of a group.
-- KEYS: stream, retry, due, dead, the index of parked messages.
-- ARGV: group, name prefix of this library's consumers, lease in ms, lease of other libraries'
--       consumers in ms.
-- Returns: {lag (-1 = unknown), pending, age of the oldest pending in ms (-1 = none), delayed,
--           dead, live consumers, parked, entries of the stream that the group has not finished (-1 =
--           unknown), ms since the last sign of life of any consumer (-1 = none), consumers of other
--           libraries, entries that are pending for them, last delivered id}, or nil if the group does
--           not exist.
local group = ARGV[1]

local function age(key, found, oldest)
  if not found or found.pending == 0 then return oldest end
  local id = redis.call('XPENDING', key, group, '-', '+', 1)[1][1]
  return math.max(oldest, clock() - string.match(id, '^%d+'))
end

local primary, retry = group_info(KEYS[1], group), group_info(KEYS[2], group)
if not primary then return false end
local lag = unread(KEYS[1], primary)
local unfinished = lag and lag + primary.pending or -1
if lag then lag = lag + undelivered(KEYS[2], retry) end
local pending = primary.pending + (retry and retry.pending or 0)

local alive, idle, foreign, held = 0, -1, 0, 0
for _, list in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], group)) do
  local consumer = {}
  for i = 1, #list, 2 do consumer[list[i]] = list[i + 1] end
  local lease, ours = lease_of(consumer.name, ARGV[2], ARGV[3], ARGV[4])
  if consumer.idle < lease then alive = alive + 1 end
  if idle < 0 or consumer.idle < idle then idle = consumer.idle end
  if not ours then foreign, held = foreign + 1, held + consumer.pending end
end
return {
  lag or -1, pending, age(KEYS[2], retry, age(KEYS[1], primary, -1)),
  redis.call('ZCARD', KEYS[3]), redis.call('XLEN', KEYS[4]), alive, parked(KEYS[5], group),
  unfinished, idle, foreign, held, primary['last-delivered-id']
}
