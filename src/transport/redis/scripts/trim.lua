-- Drops the entries that every group has finished.
-- KEYS: stream, gate. ARGV: consumer, prefix of our consumers, ms until the next trim of any worker,
--       '1' to trim although consumers that are not ours read it, lease of others' consumers in ms.
-- Returns: {how many were dropped}, or {0, group, consumer} where that consumer prevents it.
if not turn(KEYS[2], ARGV[1], ARGV[3]) then return { 0 } end
if redis.call('EXISTS', KEYS[1]) == 0 then return { 0 } end

local lowest
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #info, 2 do group[info[i]] = info[i + 1] end
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], group.name)) do
    -- Others may want to read what is handled: their streams are trimmed when somebody asks for it.
    -- One that holds nothing and was not heard of for its lease is a visitor that has left.
    local found = {}
    for i = 1, #consumer, 2 do found[consumer[i]] = consumer[i + 1] end
    local lease, ours = lease_of(found.name, ARGV[2], 0, ARGV[5])
    local left = found.pending == 0 and found.idle > lease
    if ARGV[4] ~= '1' and not ours and not left then return { 0, group.name, found.name } end
  end
  local needed = group['last-delivered-id']
  if group.pending > 0 then needed = redis.call('XPENDING', KEYS[1], group.name)[2] end
  if not lowest or below(needed, lowest) then lowest = needed end
end
if not lowest then return { 0 } end

local dropped = 0
-- An approximate trim stops after 10,000 entries.
for _ = 1, 100 do
  local step = redis.call('XTRIM', KEYS[1], 'MINID', '~', lowest)
  dropped = dropped + step
  if step == 0 then break end
end
return { dropped }
