-- Lists the entries of a stream that a group has not read.
-- KEYS: stream. ARGV: group, after ('' = the first one), max entries, max bytes.
-- Returns: a page.
local group, after = group_info(KEYS[1], ARGV[1]), ARGV[2]
if not group then return { {}, 0 } end
-- Entries may have been read since the page before.
local read = group['last-delivered-id']
if after == '' or below(after, read) then after = read end
return page(KEYS[1], '(' .. after, tonumber(ARGV[3]), tonumber(ARGV[4]))
