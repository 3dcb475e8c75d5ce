-- Replays or purges dead letters.
-- KEYS: dead, retry.
-- ARGV: group, '1' to replay | '0' to purge, and one of:
--       'ids', id…
--       'range', after ('' = the beginning), until, name ('' = any), max to read, max bytes:
--       stops after the letter that reaches them
--       'edited', id, field, value…: replays the letter with these fields
-- Returns: {number of letters, the last one read ('' = there are no more), {the ids of those that
--           cannot be replayed}}.

-- The number of values with which a letter of this library begins: five facts, each with its name.
local FACTS = 10
local group, replaying = ARGV[1], ARGV[2] == '1'

-- Returns the message's fields in a letter that a worker of this group has made. Returns nil for
-- other letters, and nil and true if the fields cannot be decoded.
local function message(letter)
  if #letter < FACTS or letter[1] ~= '~g' or letter[2] ~= group or letter[3] ~= '~o' then return nil end
  local rest = {}
  for i = FACTS + 1, #letter do rest[#rest + 1] = letter[i] end
  if #rest == 2 and rest[1] == '~f' then
    local fields = unpacked(rest[2])
    return fields, not fields
  end
  return rest
end

local function value(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end

-- Adds a letter's message to the retry stream as a new message. A task loses its time to live, so
-- it runs even if it has expired. A request keeps it, since the caller of an expired request no
-- longer waits.
local function replay(origin, fields)
  local copy = { '~o', origin, '~a', '0' }
  local task = value(fields, 'type') == 'task'
  local kept = {}
  for i = 1, #fields, 2 do
    if not (task and fields[i] == '~t') then
      kept[#kept + 1] = fields[i]
      kept[#kept + 1] = fields[i + 1]
    end
  end
  append(copy, sent(kept, false))
  local entry = redis.call('XADD', KEYS[2], '*', unpack(copy))
  local base = base_of(KEYS[2], ':retry:' .. group)
  local record, id = recorded(base, group, fields)
  if record then
    redis.call('PERSIST', record)
    redis.call('HDEL', record, 'ended', 'progress')
    change(base, group, record, id, 'waiting', 'place', 'retry ' .. entry, 'attempt', 0, 'reason', '')
    local unique = redis.call('HGET', record, 'unique')
    -- Another task may hold the key by now.
    if unique and unique ~= '' then
      redis.call('SET', holder_of(base, group, unique), id, 'NX')
    end
  end
end

local acted, skipped = 0, {}
local function act(id, letter, name)
  local fields, unreadable = message(letter)
  if name ~= '' and (not fields or value(fields, 'name') ~= name) then return end
  if replaying then
    if not fields then
      -- A letter that cannot be decoded does not stop the replay of the others.
      if unreadable then skipped[#skipped + 1] = id end
      return
    end
    replay(letter[4], fields)
  end
  acted = acted + redis.call('XDEL', KEYS[1], id)
end

if ARGV[3] == 'ids' then
  for i = 4, #ARGV do
    local found = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
    if found then act(found[1], found[2], '') end
  end
  return { acted, '', skipped }
end
if ARGV[3] == 'edited' then
  local found = redis.call('XRANGE', KEYS[1], ARGV[4], ARGV[4])[1]
  if not found or not message(found[2]) then return { 0, '', {} } end
  local fields = {}
  for i = 5, #ARGV do fields[#fields + 1] = ARGV[i] end
  replay(found[2][4], fields)
  return { redis.call('XDEL', KEYS[1], ARGV[4]), '', {} }
end
local after, most, room, seen = ARGV[4], tonumber(ARGV[7]), tonumber(ARGV[8]), 0
while seen < most and room > 0 do
  -- One at a time, since the size of a letter is only known after it was read.
  local from = after == '' and '-' or '(' .. after
  local letter = redis.call('XRANGE', KEYS[1], from, ARGV[5], 'COUNT', 1)[1]
  if not letter then return { acted, '', skipped } end
  for _, part in ipairs(letter[2]) do room = room - #part end
  act(letter[1], letter[2], ARGV[6])
  after, seen = letter[1], seen + 1
end
return { acted, after, skipped }
