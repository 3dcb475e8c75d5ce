-- Returns what waits for the groups of a stream that have live workers.
-- KEYS: stream. ARGV: prefix of the stream's other keys, name prefix of this library's consumers,
--       lease in ms, lease of other libraries' consumers in ms, the maximum number of messages to
--       count one by one, '1' to look for the oldest message.
-- Returns: for each of these groups {group, number of messages, age of the oldest in ms (-1 = none, or
--          not looked for), number of entries read (-1 = unknown)}.
local result = {}
if redis.call('EXISTS', KEYS[1]) == 0 then return result end
for _, list in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local info = {}
  for i = 1, #list, 2 do info[list[i]] = list[i + 1] end
  if live_consumers(KEYS[1], info.name, ARGV[2], ARGV[3], ARGV[4]) > 0 then
    -- KEYS cannot list this key, but it is in the stream's slot.
    local retry = ARGV[1] .. ':retry:' .. info.name
    local again = group_info(retry, info.name)
    local age = -1
    if ARGV[6] == '1' then age = oldest_waiting(KEYS[1], info, retry, again) end
    local messages = unread(KEYS[1], info, tonumber(ARGV[5]), true) + undelivered(retry, again)
    result[#result + 1] = { info.name, messages, age, info['entries-read'] or -1 }
  end
end
return result
