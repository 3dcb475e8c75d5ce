-- Deletes this consumer, unless entries are pending for it. Removes the record of the names that it
-- serves: other workers that serve the same names add it again. Removes its announcement.
-- KEYS: stream, retry, the names that the group's workers serve, the announcements of the group.
-- ARGV: group, consumer, the names that this one has recorded, or ''.
-- Returns: 0, or more if entries are pending for it.
if ARGV[3] ~= '' then redis.call('ZREM', KEYS[3], ARGV[3]) end
-- Another program may have stored something else there.
redis.pcall('HDEL', KEYS[4], ARGV[2])
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
