-- Removes messages that wait for a group, at most `most` of each sort.
-- KEYS: stream, retry, due, bodies. ARGV: group, most, the last id to remove from the stream ('' = the
--       newest one now).
-- Returns: {number of messages removed, the last id to remove}.
local stream, retry, due, bodies = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, most, last = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local base, removed = base_of(due, ':due:' .. group), 0

-- Ends the record of a message that is removed, and frees the keys that it holds.
local function remove(fields, origin)
  for i = 1, #fields, 2 do
    if fields[i] == '~o' then origin = fields[i + 1] end
  end
  local key, sent_id = sent_with(fields, origin)
  if key then free_idempotency(base, key, sent_id) end
  local record, id = recorded(base, group, fields)
  if record then ended(base, group, id, 'discarded', 'purged') end
  removed = removed + 1
end

local primary, again = group_info(stream, group), group_info(retry, group)
if primary then
  if last == '' then last = redis.call('XINFO', 'STREAM', stream)[8] end
  local from = '(' .. primary['last-delivered-id']
  local entries = redis.call('XRANGE', stream, from, last, 'COUNT', most)
  if #entries > 0 then
    local call = { 'XGROUP', 'SETID', stream, group, entries[#entries][1] }
    -- Without it, the server would no longer know the group's lag.
    if type(primary['entries-read']) == 'number' then
      call[6], call[7] = 'ENTRIESREAD', primary['entries-read'] + #entries
    end
    for _, entry in ipairs(entries) do remove(entry[2], entry[1]) end
    redis.call(unpack(call))
  end
end
if again then
  local from = '(' .. again['last-delivered-id']
  for _, entry in ipairs(redis.call('XRANGE', retry, from, '+', 'COUNT', most)) do
    remove(unpacked_entry(entry[2]), entry[1])
    redis.call('XDEL', retry, entry[1])
  end
end
for _, member in ipairs(redis.call('ZRANGE', due, 0, most - 1)) do
  remove(unpacked(redis.call('HGET', bodies, member) or '') or {}, member)
  redis.call('ZREM', due, member)
  redis.call('HDEL', bodies, member)
end
for _, key in ipairs(redis.call('ZRANGE', base .. ':parking:' .. group, 0, -1)) do
  local parked = parked_of(base, group, key)
  for _, entry in ipairs(redis.call('XRANGE', parked, '-', '+', 'COUNT', most)) do
    remove(unpacked_entry(entry[2]), entry[1])
    redis.call('XDEL', parked, entry[1])
  end
  hand_over(base, group, key)
end
return { removed, last }
