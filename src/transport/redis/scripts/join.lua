-- Makes sure that the group exists on the stream and on its retry stream.
-- KEYS: stream, retry. ARGV: group, start ('' = decide).
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

local joined, others = false, {}
for _, name in ipairs(groups(KEYS[1])) do
  if name == ARGV[1] then joined = true else others[#others + 1] = name end
end
if not joined then
  local start = ARGV[2]
  if start == '' then
    if #others > 0 then return { 'choose', unpack(others, 1, math.min(#others, 100)) } end
    start = '0'
  end
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], start, 'MKSTREAM')
end

local retries = false
for _, name in ipairs(groups(KEYS[2])) do retries = retries or name == ARGV[1] end
if not retries then redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[1], '0', 'MKSTREAM') end
return { 'joined', unpack(others, 1, math.min(#others, 100)) }
