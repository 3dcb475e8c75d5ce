-- Looks at one step of the group's pending entries and takes over what nobody looks after.
-- KEYS: source, gate, dead.
-- ARGV: group, consumer, '1' on the retry stream, cursor, lease in ms, lease of others' consumers in ms,
--       prefix of our consumers, most to take, '1' if a suspect may be among them, most deliveries,
--       dead letters to keep, ms until the next scan of any worker ('' = a scan that goes on), the
--       time on Redis's clock until when this worker knows that the silence of others means something.
-- Returns: {next cursor ('' = the end), taken {{id, deliveries, fields}…}, entries that were deleted,
--           dead {{id, deliveries, fields of the reply's address}…}, dead letters dropped,
--           1 if something was left for want of room}, or nil when it is not this worker's turn or
--           too late.
local src, group, me, retry = KEYS[1], ARGV[1], ARGV[2], ARGV[3] == '1'
local lease, foreign, prefix = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local room, suspects, most = tonumber(ARGV[8]), ARGV[9] == '1', tonumber(ARGV[10])
local LOOKED_AT = 100

-- Sent before Redis stood still, and carried out after that: everybody looks silent now.
if clock() > tonumber(ARGV[13]) then return false end
if ARGV[12] ~= '' and not turn(KEYS[2], me, ARGV[12]) then return false end

local taken, deleted, dead, dropped, left = {}, 0, {}, 0, 0
local pending = redis.call('XPENDING', src, group, ARGV[4], '+', LOOKED_AT)
local cursor = ''
if #pending == LOOKED_AT then cursor = '(' .. pending[#pending][1] end

local function attempts_before(fields)
  if retry then
    for i = 1, #fields, 2 do
      if fields[i] == '~a' then return tonumber(fields[i + 1]) or 0 end
    end
  end
  return 0
end

local function origin(id, fields)
  if retry then
    for i = 1, #fields, 2 do
      if fields[i] == '~o' then return fields[i + 1] end
    end
  end
  return id
end

-- Where the answer to a request goes; the rest of the entry stays here.
local function address(fields)
  local list = {}
  for i = 1, #fields, 2 do
    local field = fields[i]
    if field == 'type' or field == 'reply_to' or field == 'correlation_id' or field == '~c' then
      if #list < 16 and #fields[i + 1] <= 1024 then
        list[#list + 1] = field
        list[#list + 1] = fields[i + 1]
      end
    end
  end
  return list
end

for _, entry in ipairs(pending) do
  local id, consumer, idle, count = entry[1], entry[2], entry[3], entry[4]
  local patience = string.sub(consumer, 1, #prefix) == prefix and lease or foreign
  if idle >= patience then
    local found = redis.call('XRANGE', src, id, id)[1]
    if not found then
      finish(src, group, id, retry)
      deleted = deleted + 1
    else
      local so_far = attempts_before(found[2]) + count
      if so_far >= most then
        local fields = retry and sent(found[2], true) or found[2]
        local reason = 'delivered ' .. so_far .. ' times and never settled'
        dropped = dropped + bury(KEYS[3], group, origin(id, found[2]), reason, so_far, fields, ARGV[11])
        finish(src, group, id, retry)
        dead[#dead + 1] = { id, so_far, address(found[2]) }
      elseif #taken >= room then
        -- Whoever has room next goes on from here.
        cursor, left = id, 1
        break
      elseif count > 1 and not suspects then
        left = 1
      else
        -- One that was with several workers that are gone may be what ended them: it comes alone.
        if count > 1 then suspects = false end
        local claimed = redis.call('XCLAIM', src, group, me, 0, id, 'RETRYCOUNT', count + 1)
        taken[#taken + 1] = { id, count + 1, claimed[1][2] }
      end
    end
  end
end
return { cursor, taken, deleted, dead, dropped, left }
