-- Deletes this library's consumers that are silent for `silence` ms and their lease, and have
-- nothing pending. Removes the announcements of workers that are no longer consumers. Done once in
-- `period` ms by any worker. Returns: the number of consumers deleted.
local function reap(streams, announced, throttle_key, group, me, prefix, silence, period)
  if not throttle(throttle_key, me, period) then return 0 end
  local removed, left = 0, {}
  for _, stream in ipairs(streams) do
    if redis.call('EXISTS', stream) == 1 then
      for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
        local consumer = {}
        for f = 1, #info, 2 do consumer[info[f]] = info[f + 1] end
        local lease, ours = lease_of(consumer.name, prefix, silence, silence)
        local gone = consumer.idle > math.max(lease, silence)
        if ours and consumer.name ~= me and consumer.pending == 0 and gone then
          redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer.name)
          removed = removed + 1
        else
          left[consumer.name] = true
        end
      end
    end
  end
  -- Without permission for HKEYS, the announcements remain as long as any worker of the group
  -- lives.
  local workers = redis.pcall('HKEYS', announced)
  for _, worker in ipairs(workers.err and {} or workers) do
    if not left[worker] then redis.call('HDEL', announced, worker) end
  end
  return removed
end
