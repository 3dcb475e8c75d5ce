-- Creates the group on the stream and on its retry stream, if it does not exist.
-- KEYS: stream, retry. ARGV: group, start ('' = ask if there are others, 'after' = behind an entry
--       that was delivered before the group was deleted, unless the stream was emptied),
--       that entry.
-- Returns: {'type', key, type} | {'choose', group…} | {'joined', other group…}.
for i = 1, 2 do
  local kind = redis.call('TYPE', KEYS[i]).ok
  if kind ~= 'none' and kind ~= 'stream' then return { 'type', KEYS[i], kind } end
end

local function groups(key)
  local names = {}
  if redis.call('EXISTS', key) == 1 then
    for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do
      for i = 1, #info, 2 do
        if info[i] == 'name' then names[#names + 1] = info[i + 1] end
      end
    end
  end
  return names
end

-- The start of a group that has delivered the entry `id` before. If the stream is still the same,
-- the group starts behind `id`, or else at the beginning, so that no entry is skipped. The stream
-- is the same if the entry exists, or if an entry with this id or a later one was deleted.
local function behind(id)
  if redis.call('EXISTS', KEYS[1]) == 0 then return '0' end
  if redis.call('XRANGE', KEYS[1], id, id)[1] then return id end
  local stream = {}
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do stream[info[i]] = info[i + 1] end
  -- Redis returns this field since 7.0.
  local deleted = stream['max-deleted-entry-id']
  if deleted and not below(deleted, id) then return id end
  return '0'
end

local joined, others = false, {}
for _, name in ipairs(groups(KEYS[1])) do
  if name == ARGV[1] then joined = true else others[#others + 1] = name end
end
if not joined then
  local start = ARGV[2]
  if start == '' then
    if #others > 0 then return { 'choose', unpack(others, 1, math.min(#others, 100)) } end
    start = '0'
  elseif start == 'after' then
    start = behind(ARGV[3])
  end
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], start, 'MKSTREAM')
end

local retries = false
for _, name in ipairs(groups(KEYS[2])) do retries = retries or name == ARGV[1] end
if not retries then redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[1], '0', 'MKSTREAM') end
return { 'joined', unpack(others, 1, math.min(#others, 100)) }
