-- Renews what this worker holds, and does the rest of its upkeep: delivers what is due, gives a sign of
-- life, trims what is handled, deletes consumers that are gone. A step that fails does not end the others.
-- KEYS: stream, retry, due, bodies, the stream's due, the stream's bodies, gate of trimming, gate of
--       reaping.
-- ARGV: group, consumer, prefix of our consumers, how many due messages to move at most, and how many
--       bytes, lease of others' consumers in ms, '1' to trim although they read the stream, ms between two
--       trims of any worker ('' = none now), ms of silence of a consumer that is gone, ms between two
--       searches for those ('' = none now), an id behind every entry ('' = no sign of life now), how many
--       of the ids that follow are on the retry stream, then the ids to renew: those first.
-- Returns: {time on Redis's clock, {lost ids on the retry stream}, {lost ids on the stream},
--           moved to the retry stream: {moved, lost, ms until the next is due}, moved to the stream: the
--           same, {the last id delivered, how many are pending for the group}, trimmed: {how many} or
--           {0, group, consumer that prevents it}, how many consumers were deleted}. Each but the first
--       three is a text instead where the step has failed: the error.
local group, me, prefix, foreign = ARGV[1], ARGV[2], ARGV[3], ARGV[6]
local function try(step, ...)
  local good, result = pcall(step, ...)
  if good then return result end
  return type(result) == 'table' and result.err or tostring(result)
end

local time = clock()
local first = 13
local middle = first + ARGV[12]
local on_retry = renew(KEYS[2], group, me, first, middle - 1, {})
local on_stream = renew(KEYS[1], group, me, middle, #ARGV, {})

local most, bytes = ARGV[4], tonumber(ARGV[5])
local retried = try(promote, KEYS[3], KEYS[4], KEYS[2], most, bytes)
local sent_later = try(promote, KEYS[5], KEYS[6], KEYS[1], most, bytes)

local facts = try(function()
  -- A read that waits in vain is no sign of life to every server.
  if ARGV[11] ~= '' then
    redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', 1, 'STREAMS', KEYS[1], ARGV[11])
  end
  local delivered, pending = '', 0
  for i = 1, 2 do
    for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[i])) do
      local found = {}
      for f = 1, #info, 2 do found[info[f]] = info[f + 1] end
      if found.name == group then
        pending = pending + found.pending
        if i == 1 then delivered = found['last-delivered-id'] end
      end
    end
  end
  return { delivered, pending }
end)

local trimmed, reaped = { 0 }, 0
if ARGV[8] ~= '' then
  trimmed = try(trim, KEYS[1], KEYS[7], me, prefix, ARGV[8], ARGV[7] == '1', foreign)
end
if ARGV[10] ~= '' then
  local silence = tonumber(ARGV[9])
  reaped = try(reap, { KEYS[1], KEYS[2] }, KEYS[8], group, me, prefix, silence, ARGV[10])
end
return { time, on_retry, on_stream, retried, sent_later, facts, trimmed, reaped }
