-- Returns all that waits for a group.
-- KEYS: stream, retry, due, the stream's due, the index of parked messages.
-- ARGV: group, name prefix of this library's consumers, lease in ms, lease of other libraries'
--       consumers in ms, the horizon in ms.
-- Returns: {waiting, unclaimed, running, retrying, delayed, due within the horizon, parked, age of the
--           oldest that waits in ms (-1 = none), live consumers}.
local group, MOST = ARGV[1], 10000
local info, again = group_info(KEYS[1], group), group_info(KEYS[2], group)
local waiting, oldest, alive, pending, running = undelivered(KEYS[2], again), -1, 0, 0, 0
if info then
  waiting = waiting + unread(KEYS[1], info, MOST)
  oldest = oldest_waiting(KEYS[1], info, KEYS[2], again)
  alive, running = live_consumers(KEYS[1], group, ARGV[2], ARGV[3], ARGV[4])
  pending = info.pending
else
  waiting = waiting + redis.call('XLEN', KEYS[1])
end
if again then
  local _, also = live_consumers(KEYS[2], group, ARGV[2], ARGV[3], ARGV[4])
  running, pending = running + also, pending + again.pending
end
local soon = string.format('%.0f', clock() + ARGV[5])
local due = redis.call('ZCOUNT', KEYS[3], '-inf', soon) + redis.call('ZCOUNT', KEYS[4], '-inf', soon)
return {
  waiting, pending - running, running, redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[4]),
  due, parked(KEYS[5], group), oldest, alive
}
