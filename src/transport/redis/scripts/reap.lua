-- Removes our consumers that are gone and have nothing pending.
-- KEYS: stream, retry, gate. ARGV: group, consumer, prefix of our consumers, ms of silence,
--       ms until any worker looks again.
-- Returns: how many were removed.
if not turn(KEYS[3], ARGV[2], ARGV[5]) then return 0 end
local removed = 0
for i = 1, 2 do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[i], ARGV[1])) do
      local consumer = {}
      for f = 1, #info, 2 do consumer[info[f]] = info[f + 1] end
      local lease, ours = lease_of(consumer.name, ARGV[3], ARGV[4], ARGV[4])
      local gone = consumer.idle > math.max(lease, tonumber(ARGV[4]))
      if ours and consumer.name ~= ARGV[2] and consumer.pending == 0 and gone then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[i], ARGV[1], consumer.name)
        removed = removed + 1
      end
    end
  end
end
return removed
