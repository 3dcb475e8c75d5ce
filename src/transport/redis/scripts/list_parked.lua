-- Lists keys for which messages are parked.
-- KEYS: the sorted set of these keys. ARGV: group, max keys.
-- Returns: {{key, number of parked messages, number of permits taken, number of permits (-1 = unknown)},
--           ...}.
local group = ARGV[1]
local base, page = base_of(KEYS[1], ':parking:' .. group), {}
for _, key in ipairs(redis.call('ZRANGE', KEYS[1], 0, ARGV[2] - 1)) do
  local permits, limit = permits_of(base, group, key), redis.call('HGET', base .. ':limits:' .. group, key)
  local now = string.format('%.0f', clock())
  page[#page + 1] = {
    key, redis.call('XLEN', parked_of(base, group, key)), redis.call('ZCOUNT', permits, '(' .. now, '+inf'),
    tonumber(limit and string.match(limit, '^(%d+) ') or -1)
  }
end
return page
