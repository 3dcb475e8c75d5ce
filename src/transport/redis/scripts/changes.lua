-- Reads the feeds of a group behind the cursors.
-- KEYS: feeds. ARGV: most changes of each feed, then for each feed the id of the last change read.
-- Returns for each feed: {1 if changes in between were dropped | 0, {change…}}.
local results = {}
for i, feed in ipairs(KEYS) do
  local after = ARGV[i + 1]
  local changes = redis.call('XRANGE', feed, '(' .. after, '+', 'COUNT', ARGV[1])
  local known = after == '0-0' or #redis.call('XRANGE', feed, after, after) > 0
  results[i] = { known and 0 or 1, changes }
end
return results
