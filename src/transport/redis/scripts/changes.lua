-- Reads the feeds of a group behind the cursors.
-- KEYS: feeds. ARGV: max changes of each feed, then for each feed the id of the last change read.
-- Returns for each feed: {the id after which to continue, if changes may have been dropped ('' =
--           none were), {change…}}.
local results = {}
for i, feed in ipairs(KEYS) do
  local after, gap = ARGV[i + 1], ''
  if after ~= '0-0' and #redis.call('XRANGE', feed, after, after) == 0 then
    -- The change was trimmed or deleted. Or a replica without the change has become the primary,
    -- and may add changes with lower ids.
    local newest = redis.call('XREVRANGE', feed, '+', '-', 'COUNT', 1)[1]
    newest = newest and newest[1] or '0-0'
    if below(newest, after) then after = newest end
    gap = after
  end
  results[i] = { gap, redis.call('XRANGE', feed, '(' .. after, '+', 'COUNT', ARGV[1]) }
end
return results
