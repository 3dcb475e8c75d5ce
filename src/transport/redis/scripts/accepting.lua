-- A hundred years in ms, which Redis accepts without overflow.
local LONGEST_WINDOW = 3155760000000

-- Accepts a task: now or later, and once for each idempotency key and each unique key.
-- keys: stream, due, bodies, and the idempotency key's record, if there is a key.
-- args, from `at` to `last`: 'now' | 'after' | 'at', ms, the task's id until it is on the stream,
--       ms to keep the idempotency key once the task is due, 1 if replicas confirm the task, ms to
--       keep the task's record ('' = it has none), for a conflict of its unique key: 'keep' |
--       'replace' | 'refuse' ('' = it has no unique key), the unique key, the group of the record,
--       the digest of the content ('' = none), field, value….
-- Returns: the id of the task, and 0 it is new | 1 it is an earlier task | 2 refused because of an
--          earlier task | 3 refused, since an earlier task with the key has other content.
local function accept(keys, args, at, last)
  local stream, due_key, bodies, idempotency = keys[1], keys[2], keys[3], keys[4]
  local when, time, id = args[at], args[at + 1], args[at + 2]
  if idempotency then
    local known = redis.call('GET', idempotency)
    if known then
      -- `WAIT` covers only the writes of one connection, so this connection writes the key again.
      if args[at + 4] == '1' then redis.call('SET', idempotency, known, 'KEEPTTL') end
      local other, digest = string.match(known, '^(%S+) ?(.*)$')
      if digest ~= '' and args[at + 9] ~= '' and digest ~= args[at + 9] then return other, 3 end
      return other, 1
    end
  end

  local keep, conflict, unique, group = args[at + 5], args[at + 6], args[at + 7], args[at + 8]
  -- The record and the unique key are in the slot of the stream. `due_key` is `<base>:due`.
  local base = base_of(due_key, ':due')
  local holding = holder_of(base, group, unique)
  local holder = conflict ~= '' and redis.call('GET', holding)
  if holder then
    local where, place = place_of(record_of(base, group, holder))
    if where and is_there(base, group, stream, where, place) then
      if conflict == 'refuse' then return holder, 2 end
      if conflict == 'keep' or where ~= 'due' then
        -- Written again because of `WAIT`, as above.
        if args[at + 4] == '1' then redis.call('SET', holding, holder) end
        return holder, 1
      end
      ended(base, group, holder, 'cancelled', 'replaced by a newer task')
      redis.call('ZREM', due_key, place)
      redis.call('HDEL', bodies, place)
    end
  end

  local fields, name = {}, ''
  for i = at + 10, last do fields[#fields + 1] = args[i] end
  for i = 1, #fields, 2 do
    if fields[i] == 'name' then name = fields[i + 1] end
  end
  local now, due, place = clock(), 0, nil
  if when == 'after' then due = now + time elseif when == 'at' then due = tonumber(time) end
  if due > now or keep ~= '' then
    fields[#fields + 1] = '~i'
    fields[#fields + 1] = id
  end
  if keep ~= '' then
    fields[#fields + 1] = '~j'
    fields[#fields + 1] = group
  end
  if due > now then
    redis.call('ZADD', due_key, string.format('%.0f', due), id)
    redis.call('HSET', bodies, id, cmsgpack.pack(fields))
    place = 'due ' .. id
  else
    local entry = redis.call('XADD', stream, '*', unpack(fields))
    place = 'stream ' .. entry
    if keep == '' then id = entry end
  end
  if idempotency then
    local window = math.min(math.max(due - now, 0) + args[at + 3], LONGEST_WINDOW)
    local value = args[at + 9] == '' and id or id .. ' ' .. args[at + 9]
    redis.call('SET', idempotency, value, 'PX', string.format('%.0f', window))
  end
  if keep ~= '' then
    change(base, group, record_of(base, group, id), id, due > now and 'delayed' or 'waiting',
      'place', place, 'name', name, 'attempt', 0, 'keep', keep, 'unique', unique,
      'accepted', string.format('%.0f', now))
  end
  if conflict ~= '' then redis.call('SET', holding, id) end
  return id, 0
end
