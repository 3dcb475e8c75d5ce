-- Lists the deliveries of a group that are not settled, the lowest id first, bounded in number and in
-- bytes. The page ends with the entry that reaches the bytes, so it has at least one entry.
-- KEYS: stream. ARGV: group, after ('' = the first one), max entries, max bytes.
-- Returns: {{{id, consumer, idle ms, deliveries, {field, value, ...}}, ...}, 1 if there may be more | 0}.
-- An entry that was deleted has no fields.
local group, most, room = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
if not group_info(KEYS[1], group) then return { {}, 0 } end
local from = ARGV[2] == '' and '-' or '(' .. ARGV[2]
local pending, page = redis.call('XPENDING', KEYS[1], group, from, '+', most), {}
for _, found in ipairs(pending) do
  if room <= 0 then return { page, 1 } end
  local entry = redis.call('XRANGE', KEYS[1], found[1], found[1])[1]
  local fields = entry and entry[2] or {}
  for _, part in ipairs(fields) do room = room - #part end
  page[#page + 1] = { found[1], found[2], found[3], found[4], fields }
end
return { page, #pending == most and 1 or 0 }
