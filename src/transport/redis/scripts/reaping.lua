-- Deletes our consumers of a group that are gone, silent for `silence` ms, and have nothing pending; once
-- in `period` ms by whichever worker comes first. Returns: how many were deleted.
local function reap(streams, gate, group, me, prefix, silence, period)
  if not turn(gate, me, period) then return 0 end
  local removed = 0
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
        end
      end
    end
  end
  return removed
end
