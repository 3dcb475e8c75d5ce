-- Lists the entries of a stream that a group has not read, bounded in number and in bytes. The page
-- ends with the entry that reaches the bytes, so it has at least one entry.
-- KEYS: stream. ARGV: group, after ('' = the first one), most entries, most bytes.
-- Returns: {{{id, {field, value, ...}}, ...}, 1 if there may be more | 0}.
local group, after = group_info(KEYS[1], ARGV[1]), ARGV[2]
if not group then return { {}, 0 } end
-- Entries may have been read since the page before.
local read = group['last-delivered-id']
if after == '' or below(after, read) then after = read end
local page, most, room = {}, tonumber(ARGV[3]), tonumber(ARGV[4])
while #page < most and room > 0 do
  local entry = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', 1)[1]
  if not entry then return { page, 0 } end
  for _, part in ipairs(entry[2]) do room = room - #part end
  page[#page + 1] = entry
  after = entry[1]
end
return { page, 1 }
