-- Deletes a group, and what is stored for it except dead letters and the records of tasks.
-- KEYS: stream, retry, due, bodies, names.
-- ARGV: group, name prefix of this library's consumers, lease in ms, lease of other libraries'
--       consumers in ms, '1' to delete it even if it has live consumers.
-- Returns: {1 if the group was deleted, number of live consumers, number of pending entries}.
local group, live, pending = ARGV[1], 0, 0
local info = group_info(KEYS[1], group)
if not info then return { 0, 0, 0 } end
for i = 1, 2 do
  local found = group_info(KEYS[i], group)
  if found then pending = pending + found.pending end
end
for _, list in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], group)) do
  local consumer = {}
  for i = 1, #list, 2 do consumer[list[i]] = list[i + 1] end
  if consumer.idle < lease_of(consumer.name, ARGV[2], ARGV[3], ARGV[4]) then live = live + 1 end
end
if live > 0 and ARGV[5] ~= '1' then return { 0, live, pending } end
local base = base_of(KEYS[3], ':due:' .. group)
redis.call('XGROUP', 'DESTROY', KEYS[1], group)
local function of_group(what) return base .. ':' .. what .. ':' .. group end
for _, key in ipairs(redis.call('ZRANGE', of_group('parking'), 0, -1)) do
  redis.call('DEL', base .. ':parked:' .. #group .. ':' .. group .. ':' .. key)
end
for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end
for _, what in ipairs({ 'parking', 'limits', 'workers', 'asked', 'members', 'owner' }) do
  redis.call('DEL', of_group(what))
end
return { 1, live, pending }
