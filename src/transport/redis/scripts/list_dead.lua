-- Lists dead letters, the oldest first, bounded in number and in bytes.
-- `XRANGE` answers with whole entries however large they are, and the size of an entry is known only
-- once it is read. So it is read entry by entry, and the page ends behind the one that fills it: it
-- has at least one entry, and neither the server nor the caller holds more than the bound and one.
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
