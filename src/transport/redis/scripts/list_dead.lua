-- Lists dead letters, the oldest first.
-- KEYS: dead.
-- ARGV: after ('' = the beginning), max entries, max bytes.
-- Returns: a page.
local from = ARGV[1] == '' and '-' or '(' .. ARGV[1]
return page(KEYS[1], from, tonumber(ARGV[2]), tonumber(ARGV[3]))
