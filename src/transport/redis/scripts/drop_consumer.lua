-- Deletes a consumer of a group.
-- KEYS: stream, retry, the announcements of the group.
-- ARGV: group, consumer, name prefix of this library's consumers, lease in ms, lease of other
--       libraries' consumers in ms, '1' to delete it even if it is live or entries are pending for
--       it.
-- Returns: {1 if it was deleted, 1 if it is live, number of entries that are pending for it}, or nil
--           if the consumer does not exist.
local group, name = ARGV[1], ARGV[2]
local found, live, pending = false, 0, 0
for i = 1, 2 do
  if group_info(KEYS[i], group) then
    for _, list in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[i], group)) do
      local consumer = {}
      for f = 1, #list, 2 do consumer[list[f]] = list[f + 1] end
      if consumer.name == name then
        found, pending = true, pending + consumer.pending
        if consumer.idle < lease_of(name, ARGV[3], ARGV[4], ARGV[5]) then live = 1 end
      end
    end
  end
end
if not found then return false end
if (live == 1 or pending > 0) and ARGV[6] ~= '1' then return { 0, live, pending } end
for i = 1, 2 do
  if group_info(KEYS[i], group) then redis.call('XGROUP', 'DELCONSUMER', KEYS[i], group, name) end
end
-- Another program may have stored something else there.
redis.pcall('HDEL', KEYS[3], name)
return { 1, live, pending }
