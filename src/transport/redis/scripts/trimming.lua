-- Trims the entries of a stream that all groups have finished, at most once in `period` ms by any
-- worker. If other libraries' consumers read the stream, trims it only with `beside_foreign`.
-- Returns: {number of entries}, or {0, group, consumer} if that consumer prevents it.
local function trim(stream, throttle_key, me, prefix, period, beside_foreign, foreign)
  if not throttle(throttle_key, me, period) then return { 0 } end
  if redis.call('EXISTS', stream) == 0 then return { 0 } end

  local lowest
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local group = {}
    for i = 1, #info, 2 do group[info[i]] = info[i + 1] end
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group.name)) do
      -- Other libraries may read handled entries, so their streams are trimmed only on request. A
      -- consumer that is silent for its lease, and has nothing pending, does not count as a reader.
      local found = {}
      for i = 1, #consumer, 2 do found[consumer[i]] = consumer[i + 1] end
      local lease, ours = lease_of(found.name, prefix, 0, foreign)
      local left = found.pending == 0 and found.idle > lease
      if not beside_foreign and not ours and not left then return { 0, group.name, found.name } end
    end
    local needed = group['last-delivered-id']
    if group.pending > 0 then needed = redis.call('XPENDING', stream, group.name)[2] end
    if not lowest or below(needed, lowest) then lowest = needed end
  end
  if not lowest then return { 0 } end

  local dropped = 0
  -- An approximate trim stops after 10,000 entries, so it is repeated.
  for _ = 1, 100 do
    local step = redis.call('XTRIM', stream, 'MINID', '~', lowest)
    dropped = dropped + step
    if step == 0 then break end
  end
  return { dropped }
end
