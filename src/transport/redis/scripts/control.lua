-- Begins or ends a pause.
-- KEYS: the control hash. ARGV: '1' to begin | '0' to end, the field, the reason, and for a name: the
--       group, and the key for which its messages are parked.
-- Returns: 1 if something has changed.
local control, field = KEYS[1], ARGV[2]
local base = base_of(control, ':control')
if ARGV[1] == '1' then
  -- This is the first write, since Redis refuses only the first write of a script for lack of
  -- memory.
  local is_new = redis.call('HSET', control, field, string.format('%.0f', clock()) .. ' ' .. ARGV[3])
  if ARGV[4] and redis.call('EXISTS', parked_of(base, ARGV[4], ARGV[5])) == 1 then
    redis.call('HSET', base .. ':limits:' .. ARGV[4], ARGV[5], PAUSED)
  end
  return is_new
end
local ended = redis.call('HDEL', control, field)
if ARGV[4] and redis.call('EXISTS', parked_of(base, ARGV[4], ARGV[5])) == 1 then
  redis.call('HSET', base .. ':limits:' .. ARGV[4], ARGV[5], UNLIMITED)
  hand_over(base, ARGV[4], ARGV[5])
end
return ended
