-- Lists dead letters, the oldest first, bounded in number and in bytes.
-- They are read one at a time, since the size of an entry is only known after it was read. The page
-- ends with the entry that reaches the bytes, so it has at least one entry.
-- KEYS: dead.
-- ARGV: after ('' = the beginning), most entries, most bytes.
-- Returns: {{{id, {field, value, ...}}, ...}, 1 if there may be more | 0}.
local after, most, room = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local page = {}
while #page < most and room > 0 do
  local from = after == '' and '-' or '(' .. after
  local entry = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 1)[1]
  if not entry then return { page, 0 } end
  for _, part in ipairs(entry[2]) do room = room - #part end
  page[#page + 1] = entry
  after = entry[1]
end
return { page, 1 }
