-- Deletes this consumer, unless entries are pending for it.
-- KEYS: stream, retry. ARGV: group, consumer.
-- Returns: 0, or more if entries are pending for it.
local left = 0
for i = 1, 2 do
  local pending = redis.pcall('XPENDING', KEYS[i], ARGV[1], '-', '+', 1, ARGV[2])
  -- An error means that the stream or the group does not exist.
  if not pending.err then
    if #pending == 0 then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[i], ARGV[1], ARGV[2])
    else
      left = left + #pending
    end
  end
end
return left
