-- Looks at one step of the group's pending entries and takes over what nobody looks after.
-- KEYS: source, gate, dead.
-- ARGV: group, consumer, '1' on the retry stream, cursor, lease in ms, lease of others' consumers in ms,
--       prefix of our consumers, most to take, '1' if a suspect may be among them, most deliveries,
--       dead letters to keep, ms until the next scan of any worker ('' = a scan that goes on), the
--       time on Redis's clock until when this worker knows that the silence of others means something,
--       for how many ms it has been able to renew without a break, then the ids that are pending for
--       this worker itself and that it does not hold.
-- Returns: {next cursor ('' = the end), taken {{id, deliveries, fields}…}, entries that were deleted,
--           dead {{id, deliveries, fields of the reply's address}…}, dead letters dropped,
--           the first suspect that was left ('' = none), {ids that look left behind by this worker},
--           the error that a burial met ('' = none)}, or nil when it is not this worker's turn or too
--           late.
local src, group, me, retry = KEYS[1], ARGV[1], ARGV[2], ARGV[3] == '1'
local lease, foreign, prefix = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local room, suspects, most = tonumber(ARGV[8]), ARGV[9] == '1', tonumber(ARGV[10])
local LOOKED_AT = 100

-- Sent before Redis stood still, and carried out after that: everybody looks silent now.
if clock() > tonumber(ARGV[13]) then return false end
if ARGV[12] ~= '' and not turn(KEYS[2], me, ARGV[12]) then return false end

local healthy, unheld = tonumber(ARGV[14]), {}
for i = 15, #ARGV do unheld[ARGV[i]] = true end

local taken, deleted, dead, dropped, left, mine, refused = {}, 0, {}, 0, '', {}, ''
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

-- The delivery count is looked at before the body: a body can be large, and there can be thousands.
for _, entry in ipairs(pending) do
  local id, consumer, idle, count = entry[1], entry[2], entry[3], entry[4]
  -- Who judges by a shorter lease than the holder's must have been healthy for the holder's. Its own
  -- is the least: its ticks tell a step of the clock from silence no finer than that.
  local holders, ours = lease_of(consumer, prefix, lease, foreign)
  local patience = ours and math.max(lease, holders) or holders
  if idle == 0 then
    -- Delivered now, or in the future of a clock that has stepped back since: the server says 0 for
    -- both. Its idle time counts from now on.
    local claimed = redis.call('XCLAIM', src, group, consumer, 0, id, 'JUSTID')
    -- Since 7.0 an entry that was deleted is not pending any more after that.
    if not claimed[1] then deleted = deleted + 1 end
  elseif idle >= patience and consumer == me and not unheld[id] then
    -- A worker never claims what it holds. It knows whether it does.
    mine[#mine + 1] = id
  elseif idle >= patience and (not ours or healthy >= patience) then
    local alone = count > 1 and not suspects
    if count < most and #taken >= room then
      -- Whoever has room next goes on from here.
      cursor = id
      break
    elseif count < most and alone then
      if left == '' then left = id end
    else
      local found = redis.call('XRANGE', src, id, id)[1]
      local so_far = found and attempts_before(found[2]) + count
      if not found then
        finish(src, group, id, retry)
        deleted = deleted + 1
      elseif so_far >= most then
        local fields, reason = sent(found[2], retry), 'delivered ' .. so_far .. ' times and never settled'
        local surplus, err =
          bury(redis.pcall, KEYS[3], group, origin(id, found[2]), reason, so_far, fields, ARGV[11])
        if surplus then
          dropped = dropped + surplus
          finish(src, group, id, retry)
          dead[#dead + 1] = { id, so_far, address(found[2]) }
        else
          -- For want of memory, for example. It stays pending, and the others are claimed.
          refused = err
        end
      else
        -- One that was with several workers that are gone may be what ended them: it comes alone.
        if count > 1 then suspects = false end
        local claimed = redis.call('XCLAIM', src, group, me, 0, id, 'RETRYCOUNT', count + 1)
        taken[#taken + 1] = { id, count + 1, claimed[1][2] }
      end
    end
  end
end
return { cursor, taken, deleted, dead, dropped, left, mine, refused }
