-- Lists a group's tasks in a state, those that changed last first.
-- KEYS: the list. ARGV: group, state, the name ('' = any), the time and the id of the last task
--       listed ('' = none), max tasks, max tasks to look at, max bytes.
-- Returns: {the time and the id of the last task looked at ('' = there are no more), {id, {the
--           fields of its record, as in FIELDS}…}}.

-- The returned fields: all except results and checkpoints, which may be large.
local FIELDS = {
  'state', 'name', 'attempt', 'reason', 'unique', 'keep', 'accepted', 'started', 'ended', 'progress',
  'result_too_large'
}
local list, group, state, name = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local most, looks, room = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local base = base_of(list, ':tasks:' .. state .. ':' .. group)

local from = 0
if ARGV[5] ~= '' then
  local rank = redis.call('ZSCORE', list, ARGV[5]) == ARGV[4] and redis.call('ZREVRANK', list, ARGV[5])
  -- If the last task has changed since, the list continues with those that changed at its time or
  -- before.
  from = rank and rank + 1 or redis.call('ZCOUNT', list, '(' .. ARGV[4], '+inf')
end
local members = redis.call('ZREVRANGE', list, from, from + looks - 1, 'WITHSCORES')
local found, seen, last, gone = {}, 0, nil, {}
for i = 1, #members, 2 do
  if #found >= 2 * most or room <= 0 then break end
  local id = members[i]
  seen, last = seen + 1, { members[i + 1], id }
  local record = record_of(base, group, id)
  local fields = redis.call('HMGET', record, unpack(FIELDS))
  if fields[1] ~= state then
    -- The record has expired, or another program has changed it.
    gone[#gone + 1] = id
  elseif name == '' or fields[2] == name then
    for f = 1, #FIELDS do
      fields[f] = fields[f] or ''
      room = room - #fields[f]
    end
    found[#found + 1] = id
    found[#found + 1] = fields
  end
end
for _, id in ipairs(gone) do redis.call('ZREM', list, id) end
if seen < looks and 2 * seen == #members then last = nil end
return { last or '', found }
