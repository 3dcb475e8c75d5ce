-- Renews the leases of this consumer on its streams, and does the rest of its upkeep: delivers due
-- messages, marks itself as alive, trims handled entries, deletes dead consumers. If a step fails,
-- the other steps and streams are still done.
-- KEYS: for each stream: stream, retry, due, bodies, the stream's due, the stream's bodies,
--       throttle of trimming, throttle of reaping; then the registry of streams, if it is read.
-- ARGV: group, consumer, name prefix of this library's consumers, max due messages to move, max
--       bytes, lease of other libraries' consumers in ms, '1' to trim although they read the
--       stream, ms between two trims by any worker, ms of silence of a dead consumer, ms between
--       two searches for them, an id behind every entry, the time of the first registrations to
--       list ('' = no registry), the worker, its announcement, ms for which announcements are kept,
--       the highest version of a payload that the worker knows (0 = none), the names and versions
--       that it knows, each followed by a line feed, then for each stream: its steps ('m' = deliver
--       due messages, hand over permits that have ended and messages that older workers have left,
--       and return the group's state and pauses, 's' = mark as alive, 't' = trim, 'r' = reap, 'w' =
--       return whether the worker is announced, what it is asked, and its orders, 'a' = announce
--       it), the key of the orders and the id of the last one known, the number of ids on the retry
--       stream, the number on the stream, twice the number of counts, the ids, the counts: field,
--       number, ….
-- Returns: {time on Redis's clock, {for each stream: {{lost ids on the retry stream}, {lost ids on
--           the stream}}, and if the steps have 'm': moved to the retry stream {moved, lost, ms
--           until the next is due}, moved to the stream: the same, {last id delivered, number of
--           pending entries}, trimmed {number} or {0, group, consumer that prevents it}, number of
--           consumers deleted, number of parked messages moved, {field of a pause, its time and
--           reason…}, and if the steps have 'w': {1 if the worker is announced, the question}, {id of
--           the last order, {word, argument, operator}…}, 1 or 0}}, {registered stream, time…}}. A
--           failed step has its error, a string, as its result.
local group, me, prefix, most, bytes = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local foreign, beside_foreign, trim_period = ARGV[6], ARGV[7] == '1', ARGV[8]
local silence, reap_period, last = tonumber(ARGV[9]), ARGV[10], ARGV[11]
local worker, announcement, kept = ARGV[13], ARGV[14], ARGV[15]
local newest, versions = tonumber(ARGV[16]), ARGV[17]

local function try(step, ...)
  local good, result = pcall(step, ...)
  if good then return result end
  return type(result) == 'table' and result.err or tostring(result)
end

-- On a key of another type all leases are lost. Any other error fails the whole tick.
local function renewed(key, from, to)
  if from > to then return {} end
  local good, result = pcall(renew, key, group, me, from, to, {})
  if good then return result end
  local text = type(result) == 'table' and result.err or tostring(result)
  if not string.find(text, 'WRONGTYPE', 1, true) then error(result) end
  return { unpack(ARGV, from, to) }
end

local function facts(stream, retry, alive)
  -- This read returns nothing, and resets the consumer's idle time. A blocked read does not reset
  -- it on every version of Redis.
  if alive then
    redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', 1, 'STREAMS', stream, last)
  end
  local delivered, pending = '', 0
  for i, key in ipairs({ stream, retry }) do
    for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do
      local found = {}
      for f = 1, #info, 2 do found[info[f]] = info[f + 1] end
      if found.name == group then
        pending = pending + found.pending
        if i == 1 then delivered = found['last-delivered-id'] end
      end
    end
  end
  return { delivered, pending }
end

local time, streams = clock(), {}
local key, arg = 0, 18
while arg <= #ARGV do
  local stream, retry = KEYS[key + 1], KEYS[key + 2]
  local steps, orders_key, ordered = ARGV[arg], ARGV[arg + 1], ARGV[arg + 2]
  local retries, primaries, counts = ARGV[arg + 3], ARGV[arg + 4], ARGV[arg + 5]
  local middle = arg + 6 + retries
  local behind = middle + primaries
  local result = {
    renewed(retry, arg + 6, middle - 1),
    renewed(stream, middle, behind - 1),
  }
  local function has(step) return string.find(steps, step, 1, true) end
  if has('m') then
    local base = base_of(KEYS[key + 5], ':due')
    result[3] = try(promote, base, 'retry', KEYS[key + 3], KEYS[key + 4], retry, most, bytes)
    result[4] = try(promote, base, 'stream', KEYS[key + 5], KEYS[key + 6], stream, most, bytes)
    result[5] = try(facts, stream, retry, has('s'))
    result[6], result[7] = { 0 }, 0
    result[8] = try(hand_over_due, base, group, newest, versions)
    result[9] = try(redis.call, 'HGETALL', base .. ':control')
    if has('t') then
      result[6] = try(trim, stream, KEYS[key + 7], me, prefix, trim_period, beside_foreign, foreign)
    end
    if has('r') then
      local announced = base .. ':workers:' .. group
      result[7] = try(
        reap, { stream, retry }, announced, KEYS[key + 8], group, me, prefix, silence, reap_period
      )
    end
    if has('w') then
      local new = has('a') and announcement
      result[10] = try(present, base, group, me, new, kept, has('s'))
      result[11] = try(orders, orders_key, worker, ordered)
      result[12] = try(add_counts, base, group, time, behind, behind + counts - 1)
    end
  end
  streams[#streams + 1] = result
  key, arg = key + 8, behind + counts
end

local registered = {}
if ARGV[12] ~= '' then
  registered = redis.call('ZRANGEBYSCORE', KEYS[key + 1], ARGV[12], '+inf', 'WITHSCORES')
end
return { time, streams, registered }
