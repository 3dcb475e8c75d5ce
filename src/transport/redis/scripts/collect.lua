-- Reads the answers of workers.
-- KEYS: the announcements of the group. ARGV: group, the time from which answers count, the maximum
--       number of bytes to return, the consumers.
-- Returns: {consumer, answer, …}: at least one if there is any.
local base = base_of(KEYS[1], ':workers:' .. ARGV[1])
local found, bytes = {}, 0
for i = 4, #ARGV do
  local answer = redis.pcall('GET', base .. ':report:' .. #ARGV[1] .. ':' .. ARGV[1] .. ':' .. ARGV[i])
  if type(answer) == 'string' then
    local time, text = string.match(answer, '^(%d+) (.*)$')
    if time and tonumber(time) >= tonumber(ARGV[2]) then
      if bytes > 0 and bytes + #text > tonumber(ARGV[3]) then break end
      bytes = bytes + #text
      found[#found + 1], found[#found + 2] = ARGV[i], text
    end
  end
end
return found
