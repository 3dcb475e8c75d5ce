-- Moves what is due to a stream: a group's retry stream, or the one that is sent to.
-- KEYS: due, bodies, stream. ARGV: how many at most, and how many bytes: it ends behind the one that
-- reaches them, so it moves at least one.
-- Returns: {moved, lost, ms until the next is due (-1 = there is none)}.
local now = clock()
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[1])
local moved, lost, room = 0, 0, tonumber(ARGV[2])
-- Fewer values than one call takes from Lua. Entries that this library has put here have fewer.
local MOST = 7000
for _, member in ipairs(due) do
  if room <= 0 then break end
  local body = redis.call('HGET', KEYS[2], member) or ''
  room = room - #body
  -- One body that cannot be read does not hold up the others.
  local fields = unpacked(body)
  if fields and #fields > 0 and #fields <= MOST then
    redis.call('XADD', KEYS[3], '*', unpack(fields))
    moved = moved + 1
  else
    lost = lost + 1
  end
  redis.call('ZREM', KEYS[1], member)
  redis.call('HDEL', KEYS[2], member)
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if not first[2] then return { moved, lost, -1 } end
return { moved, lost, math.max(0, math.floor(first[2] - now)) }
