-- Scans one step of the group's pending entries, and claims those whose leases have expired.
-- KEYS: source, throttle, dead.
-- ARGV: group, consumer, '1' on the retry stream, cursor, lease in ms, lease of other libraries'
--       consumers in ms, name prefix of this library's consumers, max entries to claim, '1' if a
--       poison candidate may be among them, max deliveries, dead letters to keep, ms until the next
--       scan by any worker ('' = this scan continues), the time on Redis's clock until which this
--       consumer counts as healthy, the ms for which it has renewed its leases without a gap, then
--       the ids that are pending for this consumer but not in flight.
-- Returns: {next cursor ('' = the end), claimed {{id, deliveries, fields}…}, the number of entries
--           that were deleted, dead {{id, deliveries, fields of the reply address}…}, dead letters
--           dropped, the first poison candidate skipped ('' = none), {idle ids of this consumer},
--           the error of a refused dead letter ('' = none), {the consumer of each claimed entry}},
--           or nil if this consumer no longer counts as healthy, or another worker scanned lately.
local src, group, me, retry = KEYS[1], ARGV[1], ARGV[2], ARGV[3] == '1'
local lease, foreign, prefix = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local room, candidates, most = tonumber(ARGV[8]), ARGV[9] == '1', tonumber(ARGV[10])
local LOOKED_AT = 100

-- A command that runs so late was sent before a pause of Redis. After the pause every consumer
-- looks silent, so nothing is claimed.
if clock() > tonumber(ARGV[13]) then return false end
if ARGV[12] ~= '' and not throttle(KEYS[2], me, ARGV[12]) then return false end

local healthy, unheld = tonumber(ARGV[14]), {}
for i = 15, #ARGV do unheld[ARGV[i]] = true end

local taken, deleted, dead, dropped, left, mine, refused, from = {}, 0, {}, 0, '', {}, '', {}
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

-- Returns the number of attempts after which an entry is given up. The deliveries that no worker
-- has settled have the limit `most` as well, which a sender cannot raise.
local function attempts_of(fields)
  for i = 1, #fields, 2 do
    if fields[i] == '~n' then return tonumber(fields[i + 1]) or most end
  end
  return most
end

local function origin(id, fields)
  if retry then
    for i = 1, #fields, 2 do
      if fields[i] == '~o' then return fields[i + 1] end
    end
  end
  return id
end

-- Returns the fields with the reply address of a request. Only these fields are sent to the worker.
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

-- The delivery count is checked before the body is read: bodies can be large and many.
for _, entry in ipairs(pending) do
  local id, consumer, idle, count = entry[1], entry[2], entry[3], entry[4]
  -- A consumer of this library must be silent for its own lease, and at least for this consumer's:
  -- within a shorter time, this consumer's ticks cannot distinguish a step of the clock from
  -- silence. This consumer must also have been healthy for that time.
  local holders, ours = lease_of(consumer, prefix, lease, foreign)
  local patience = ours and math.max(lease, holders) or holders
  if idle == 0 then
    -- Redis returns 0 if the entry was delivered in this millisecond, and if its time is in the
    -- future since the clock stepped back. The XCLAIM sets the time to now, so that the idle time
    -- grows again.
    local claimed = redis.call('XCLAIM', src, group, consumer, 0, id, 'JUSTID')
    -- Since Redis 7.0 this also removes a deleted entry from the pending entries.
    if not claimed[1] then deleted = deleted + 1 end
  elseif idle >= patience and consumer == me and not unheld[id] then
    -- A consumer never claims its own deliveries in flight. It gets this id, to check whether it is
    -- one.
    mine[#mine + 1] = id
  elseif idle >= patience and (not ours or healthy >= patience) then
    local alone = count > 1 and not candidates
    if count < most and #taken >= room then
      -- The next scan continues here.
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
      elseif count >= most or so_far >= attempts_of(all_fields(found[2], retry)) then
        local fields, reason = sent(found[2], retry), 'delivered ' .. so_far .. ' times and never settled'
        local surplus, err =
          dead_letter(redis.pcall, KEYS[3], group, origin(id, found[2]), reason, so_far, fields, ARGV[11])
        if surplus then
          local base = base_of(KEYS[3], ':dead:' .. group)
          local record, task = recorded(base, group, all_fields(found[2], retry))
          if record then ended(base, group, task, 'dead', reason) end
          local key, sent_id = sent_with(found[2], origin(id, found[2]))
          if key then free_idempotency(base, key, sent_id) end
          dropped = dropped + surplus
          finish(src, group, id, retry)
          give_back(base, group, found[2], retry)
          dead[#dead + 1] = { id, so_far, address(found[2]) }
        else
          -- The server refuses the dead letter, for example without memory. The entry stays
          -- pending, and the other entries are claimed.
          refused = err
        end
      else
        -- An entry that crashed several workers may crash this one, so it is claimed alone.
        if count > 1 then candidates = false end
        local claimed = redis.call('XCLAIM', src, group, me, 0, id, 'RETRYCOUNT', count + 1)
        taken[#taken + 1] = { id, count + 1, claimed[1][2] }
        from[#from + 1] = consumer
      end
    end
  end
end
return { cursor, taken, deleted, dead, dropped, left, mine, refused, from }
