-- Moves due messages to a stream, at most `most`. `base` is the prefix of the keys, and `where` is
-- 'stream' or 'retry'. Stops after the message that reaches `most_bytes`, so at least one is moved.
-- Returns: {moved, lost, ms until the next is due (-1 = none)}.
local function promote(base, where, due_key, bodies, stream, most, most_bytes)
  local now = clock()
  local due = redis.call('ZRANGEBYSCORE', due_key, '-inf', string.format('%.0f', now), 'LIMIT', 0, most)
  local moved, lost, room = 0, 0, most_bytes
  -- Lua cannot pass many more values than this to a command. Entries of this library have fewer.
  local MOST = 7000
  for _, member in ipairs(due) do
    if room <= 0 then break end
    local body = redis.call('HGET', bodies, member) or ''
    room = room - #body
    -- A body that cannot be decoded does not delay the others.
    local fields = unpacked(body)
    if fields and #fields > 0 and #fields <= MOST then
      local entry = redis.call('XADD', stream, '*', unpack(fields))
      local group
      fields = all_fields(fields, where == 'retry')
      for i = 1, #fields, 2 do
        if fields[i] == '~j' then group = fields[i + 1] end
      end
      if group then
        local record, id = recorded(base, group, fields)
        if record then change(base, group, record, id, 'waiting', 'place', where .. ' ' .. entry) end
      end
      moved = moved + 1
    else
      lost = lost + 1
    end
    redis.call('ZREM', due_key, member)
    redis.call('HDEL', bodies, member)
  end
  local first = redis.call('ZRANGE', due_key, 0, 0, 'WITHSCORES')
  if not first[2] then return { moved, lost, -1 } end
  return { moved, lost, math.max(0, math.floor(first[2] - now)) }
end
