-- Reads the history of a group.
-- KEYS: the announcements of the group. ARGV: group, the number of minutes.
-- Returns: {the current minute since 1970, {minute, {field, number, …}} for each minute in which
--           something has happened}.
local base, now = base_of(KEYS[1], ':workers:' .. ARGV[1]), math.floor(clock() / 60000)
local found = { now }
for minute = now - ARGV[2] + 1, now do
  local key = base .. ':minute:' .. string.format('%.0f', minute) .. ':' .. ARGV[1]
  local counts = redis.call('HGETALL', key)
  if #counts > 0 then found[#found + 1] = { minute, counts } end
end
return found
