-- Books the next free time of a key that starts at most `most` messages in any period.
-- KEYS: the starts, a sorted set: holder → ms. ARGV: messages, ms of the period, the holder.
-- Returns: ms until the message may start.
local starts, most, period, holder = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local now = clock()
redis.call('ZREMRANGEBYSCORE', starts, '-inf', string.format('%.0f', now - period))
local booked = redis.call('ZREM', starts, holder) == 1
-- For a message that has a booking, only starts that have happened count.
local before = booked and redis.call('ZCOUNT', starts, '-inf', string.format('%.0f', now))
  or redis.call('ZCARD', starts)
local at = now
if before >= most then
  local last = redis.call('ZREVRANGE', starts, most - 1, most - 1, 'WITHSCORES')[2]
  at = math.max(now, last + period)
end
redis.call('ZADD', starts, string.format('%.0f', at), holder)
-- The key expires when its last booking no longer counts.
local last = redis.call('ZREVRANGE', starts, 0, 0, 'WITHSCORES')[2]
redis.call('PEXPIRE', starts, string.format('%.0f', last - now + period))
return at - now
