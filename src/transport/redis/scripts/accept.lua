-- Accepts a task: now or later, and once for each idempotency key.
-- KEYS: stream, due, bodies, and the idempotency key's record, if there is a key.
-- ARGV: 'now' | 'after' | 'at', ms, the task's id until it is on the stream, ms to keep the
--       idempotency key, 1 if replicas confirm the task, field, value….
-- Returns: the id.
if KEYS[4] then
  local known = redis.call('GET', KEYS[4])
  if known then
    -- `WAIT` covers only the writes of one connection, so this connection writes the record too.
    if ARGV[5] == '1' then redis.call('SET', KEYS[4], known, 'KEEPTTL') end
    return known
  end
end
local fields = {}
for i = 6, #ARGV do fields[#fields + 1] = ARGV[i] end
local now, due, id = clock(), 0, nil
if ARGV[1] == 'after' then due = now + ARGV[2] elseif ARGV[1] == 'at' then due = tonumber(ARGV[2]) end
if due > now then
  id = ARGV[3]
  fields[#fields + 1] = '~i'
  fields[#fields + 1] = id
  redis.call('ZADD', KEYS[2], string.format('%.0f', due), id)
  redis.call('HSET', KEYS[3], id, cmsgpack.pack(fields))
else
  id = redis.call('XADD', KEYS[1], '*', unpack(fields))
end
if KEYS[4] then redis.call('SET', KEYS[4], id, 'PX', ARGV[4]) end
return id
