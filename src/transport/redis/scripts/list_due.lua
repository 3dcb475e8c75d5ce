-- Lists delayed messages, those first that are due first, bounded in number and in bytes. The page
-- ends with the message that reaches the bytes, so it has at least one message.
-- KEYS: due, bodies. ARGV: the time and the member of the last message listed ('' = none), max
--       messages, max bytes.
-- Returns: {{{member, time, body ('' = there is none)}, ...}, 1 if there may be more | 0}.
local time, member, most, room = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local from = 0
if member ~= '' then
  local rank = redis.call('ZSCORE', KEYS[1], member) == time and redis.call('ZRANK', KEYS[1], member)
  -- If the last message was moved since, the list continues with all messages of its time.
  from = rank and rank + 1 or redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. time)
end
local due, page = redis.call('ZRANGE', KEYS[1], from, from + most - 1, 'WITHSCORES'), {}
for i = 1, #due, 2 do
  if room <= 0 then return { page, 1 } end
  local body = redis.call('HGET', KEYS[2], due[i]) or ''
  room = room - #body
  page[#page + 1] = { due[i], due[i + 1], body }
end
return { page, #due == 2 * most and 1 or 0 }
