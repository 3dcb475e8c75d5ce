-- Removes this worker from the group, where nothing is pending for it.
-- KEYS: stream, retry. ARGV: group, consumer.
-- Returns: how many entries are still pending for it on a stream of the two (0 or more).
local left = 0
for i = 1, 2 do
  local pending = redis.pcall('XPENDING', KEYS[i], ARGV[1], '-', '+', 1, ARGV[2])
  -- An error here is a stream or a group that is gone already.
  if not pending.err then
    if #pending == 0 then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[i], ARGV[1], ARGV[2])
    else
      left = left + #pending
    end
  end
end
return left
