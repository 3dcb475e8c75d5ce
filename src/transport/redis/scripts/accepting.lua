-- Accepts a task: now or later, and once for each idempotency key.
-- keys: stream, due, bodies, and the idempotency key's record, if there is a key.
-- args, from `at` to `last`: 'now' | 'after' | 'at', ms, the task's id until it is on the stream,
--       ms to keep the idempotency key, 1 if replicas confirm the task, field, value….
-- Returns: the id.
local function accept(keys, args, at, last)
  local when, time, record = args[at], args[at + 1], keys[4]
  if record then
    local known = redis.call('GET', record)
    if known then
      -- `WAIT` covers only the writes of one connection, so this connection writes the record too.
      if args[at + 4] == '1' then redis.call('SET', record, known, 'KEEPTTL') end
      return known
    end
  end
  local fields = {}
  for i = at + 5, last do fields[#fields + 1] = args[i] end
  local now, due, id = clock(), 0, nil
  if when == 'after' then due = now + time elseif when == 'at' then due = tonumber(time) end
  if due > now then
    id = args[at + 2]
    fields[#fields + 1] = '~i'
    fields[#fields + 1] = id
    redis.call('ZADD', keys[2], string.format('%.0f', due), id)
    redis.call('HSET', keys[3], id, cmsgpack.pack(fields))
  else
    id = redis.call('XADD', keys[1], '*', unpack(fields))
  end
  if record then redis.call('SET', record, id, 'PX', args[at + 3]) end
  return id
end
