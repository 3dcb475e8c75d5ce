-- Reads new entries of several streams in their order, within the room. Each XREADGROUP reads
-- several streams, but no more than together stay within the room and the bytes.
-- KEYS: for each stream: retry, stream. ARGV: group, consumer, room, bytes, the most entries that may
--       be pending for the group ('' = no limit), then for each stream: the most entries of it, and
--       the bytes of one entry.
-- Returns: {{key, {entry…}}…, as XREADGROUP does, {number of a stream that cannot be read,
--           error…}, 1 if the limit admits no more}.
local group, me, room, bytes = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local count = #KEYS / 2
local found, failed, full = {}, {}, {}

local limit, free = tonumber(ARGV[5]), nil
if limit then
  free = limit - pending_of(group, KEYS)
  room = math.max(0, math.min(room, free))
end
local before = room

-- Reads at most `max` entries of each key. Returns the number of entries by key, or nil and the
-- error.
local function read(keys, max)
  local call = { 'XREADGROUP', 'GROUP', group, me, 'COUNT', max, 'STREAMS' }
  for _, key in ipairs(keys) do call[#call + 1] = key end
  for _ = 1, #keys do call[#call + 1] = '>' end
  local answer = redis.pcall(unpack(call))
  if not answer then return {} end
  if answer.err then return nil, answer.err end
  local came = {}
  for _, stream in ipairs(answer) do
    found[#found + 1] = stream
    came[stream[1]] = #stream[2]
    room = room - #stream[2]
    for _, entry in ipairs(stream[2]) do
      for _, value in ipairs(entry[2] or {}) do bytes = bytes - #value end
    end
  end
  return came
end

-- Reads the streams from `first` to `last`, which have the same quota.
local function read_streams(first, last, max)
  local keys = {}
  for i = first, last do
    keys[#keys + 1] = KEYS[2 * i - 1]
    keys[#keys + 1] = KEYS[2 * i]
  end
  local came, err = read(keys, max)
  if came then
    for i = first, last do
      local of_stream = (came[KEYS[2 * i - 1]] or 0) + (came[KEYS[2 * i]] or 0)
      if of_stream >= max then full[#full + 1] = i end
    end
  elseif first < last then
    -- One of the streams cannot be read. Find it by reading each.
    for i = first, last do read_streams(i, i, max) end
  else
    failed[#failed + 1] = first
    failed[#failed + 1] = err
  end
end

-- Reads one stream whose two keys together could exceed the room.
local function read_one(i, max)
  local before = room
  for key = 2 * i - 1, 2 * i do
    if room > 0 and max > before - room then
      local came, err = read({ KEYS[key] }, math.min(room, max - (before - room)))
      if not came then
        failed[#failed + 1] = i
        failed[#failed + 1] = err
        return
      end
    end
  end
  if before - room >= max then full[#full + 1] = i end
end

-- Reads these streams: at most `share` entries of each, or its quota if `share` is nil.
local function pass(streams, share)
  local function quota(i) return share or tonumber(ARGV[4 + 2 * i]) end
  local at = 1
  while at <= #streams and room > 0 and bytes > 0 do
    local first = streams[at]
    local max, size = quota(first), tonumber(ARGV[5 + 2 * first])
    local cost = 2 * max * size
    local last, sum = at, cost
    -- Add the next stream while it has the same quota, is adjacent, and fits.
    while last < #streams and streams[last + 1] == streams[last] + 1
      and quota(streams[last + 1]) == max do
      local more = 2 * max * tonumber(ARGV[5 + 2 * streams[last + 1]])
      if 2 * max * (last - at + 2) > room or sum + more > bytes then break end
      last, sum = last + 1, sum + more
    end
    if 2 * max > room or cost > bytes then
      read_one(first, math.max(1, math.min(max, room, math.floor(bytes / math.max(1, size)))))
    else
      read_streams(first, streams[last], max)
    end
    at = last + 1
  end
end

local all = {}
for i = 1, count do all[i] = i end
pass(all)
-- Divide unused quotas among the streams that have more.
while #full > 0 and room > 0 and bytes > 0 do
  local again = full
  full = {}
  pass(again, math.max(1, math.floor(room / #again)))
end
return { found, failed, free and free <= before - room and 1 or 0 }
