-- Removes messages that wait for a group, at most `most` of each sort.
-- KEYS: stream, retry, due, bodies. ARGV: group, most, the last id to remove from the stream ('' = the
--       newest one now).
-- Returns: {number of messages removed, the last id to remove, 1 if there may be more}.
local stream, retry, due, bodies = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, most, last = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local base, removed, more = base_of(due, ':due:' .. group), 0, 0

-- Ends the record of a message that is removed, and frees the keys that it holds. `origin` is the id
-- of an entry on the stream itself.
local function remove(fields, origin)
  if not origin then
    for i = 1, #fields, 2 do
      if fields[i] == '~o' then origin = fields[i + 1] end
    end
    fields = unpacked_entry(fields)
  end
  local record, id = recorded(base, group, fields)
  if record and is_cancelled(record) then
    expire(record)
    return
  end
  local key, sent_id = sent_with(fields, origin)
  if key then free_idempotency(base, key, sent_id) end
  if record then ended(base, group, id, 'discarded', 'purged') end
  removed = removed + 1
end

-- Sets `more` if a list has the maximum length. Returns the list.
local function cut(list)
  if #list == most then more = 1 end
  return list
end

local primary, again, returned = group_info(stream, group), group_info(retry, group), {}
if primary then
  local about, list = {}, redis.call('XINFO', 'STREAM', stream)
  for i = 1, #list, 2 do about[list[i]] = list[i + 1] end
  local newest = about['last-generated-id']
  if last == '' then last = newest end
  local from = '(' .. primary['last-delivered-id']
  local entries = cut(redis.call('XRANGE', stream, from, last, 'COUNT', most))
  if #entries > 0 then
    local call = { 'XGROUP', 'SETID', stream, group, entries[#entries][1] }
    -- Without ENTRIESREAD, the server would no longer know the group's lag. At the end of the
    -- stream it is the number of all entries added, since entries that the group has not read may
    -- have been trimmed.
    local read = primary['entries-read'] and primary['entries-read'] + #entries
    if call[5] == newest then read = about['entries-added'] end
    if read then call[6], call[7] = 'ENTRIESREAD', read end
    for _, entry in ipairs(entries) do remove(entry[2], entry[1]) end
    redis.call(unpack(call))
  end
end
if again then
  local from = '(' .. again['last-delivered-id']
  for _, entry in ipairs(cut(redis.call('XRANGE', retry, from, '+', 'COUNT', most))) do
    remove(entry[2])
    redis.call('XDEL', retry, entry[1])
    returned[#returned + 1] = entry[2]
  end
end
for _, member in ipairs(cut(redis.call('ZRANGE', due, 0, most - 1))) do
  remove(unpacked(redis.call('HGET', bodies, member) or '') or {})
  redis.call('ZREM', due, member)
  redis.call('HDEL', bodies, member)
end
local left = most
for _, key in ipairs(redis.call('ZRANGE', base .. ':parking:' .. group, 0, -1)) do
  local parked = parked_of(base, group, key)
  for _, entry in ipairs(redis.call('XRANGE', parked, '-', '+', 'COUNT', left)) do
    remove(entry[2])
    redis.call('XDEL', parked, entry[1])
    left = left - 1
  end
  if redis.call('XLEN', parked) == 0 then hand_over(base, group, key) end
  if left == 0 then
    more = 1
    break
  end
end
-- The permits are returned last, so that none goes to a message that is removed.
for _, fields in ipairs(returned) do give_back(base, group, fields, true) end
return { removed, last, more }
