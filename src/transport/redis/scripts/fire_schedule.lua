-- Sends the task of a schedule: at a tick, or between the ticks.
-- KEYS: the schedules, the stream, its due, its bodies.
-- ARGV: name, revision, the last tick that the caller knows, the tick ('' = none), the maximum
--       number of runs that are kept, then the arguments of the function `accept`.
-- Returns: 'sent' | 'skipped' | 'early' | 'taken' | 'changed', ms on Redis's clock, and the id of the
--          task that was sent or has not ended, or for 'taken' the schedule's last tick.
local FIRST = 6
local key, name, tick = KEYS[1], ARGV[1], ARGV[4]
local fields = { 'revision:' .. name, 'last:' .. name, 'paused:' .. name, 'runs:' .. name }
local revision, last, paused, runs = unpack(redis.call('HMGET', key, unpack(fields)))
local now = clock()
local function result(outcome, text) return { outcome, milliseconds(now), text } end
if revision ~= ARGV[2] then return result('changed', '') end
if tick ~= '' then
  if paused then return result('changed', '') end
  if last ~= ARGV[3] then return result('taken', last) end
  if now < tonumber(tick) then return result('early', '') end
end

-- Redis does not undo the writes of a script that fails, and a task that is stored without its tick
-- would be sent again. So every possible failure is found before the first write.
local failure
local function check(name, expected, command)
  if failure then return end
  local found = redis.call('TYPE', name).ok
  if found ~= 'none' and found ~= expected then
    failure = 'ERR the key `' .. name .. '` is a ' .. found .. ' and not a ' .. expected
  -- Redis 6.2 cannot say what is permitted.
  elseif redis.acl_check_cmd and not redis.acl_check_cmd(command, name) then
    failure = 'NOPERM no permission for `' .. command .. '` on `' .. name .. '`'
  end
end
check(key, 'hash', 'HSET')
if ARGV[FIRST] == 'now' then
  check(KEYS[2], 'stream', 'XADD')
else
  check(KEYS[3], 'zset', 'ZADD')
  check(KEYS[4], 'hash', 'HSET')
end
local keep, conflict, unique, group = unpack(ARGV, FIRST + 5, FIRST + 8)
local base = base_of(KEYS[3], ':due')
if conflict ~= '' then check(holder_of(base, group, unique), 'string', 'SET') end
if keep ~= '' then check(record_of(base, group, ARGV[FIRST + 2]), 'hash', 'HSET') end
if failure then return redis.error_reply(failure) end

local id, outcome = accept({ KEYS[2], KEYS[3], KEYS[4] }, ARGV, FIRST, #ARGV)
outcome = outcome == 0 and 'sent' or 'skipped'
local at, kind = tick, 'tick'
if tick == '' then at, kind = milliseconds(now), 'manual' end
local lines = {}
for line in string.gmatch(runs or '', '[^\n]+') do lines[#lines + 1] = line end
lines[#lines + 1] = table.concat({ at, outcome, kind, id }, ' ')
while #lines > tonumber(ARGV[5]) do table.remove(lines, 1) end
runs = table.concat(lines, '\n')
if tick == '' then
  redis.call('HSET', key, fields[4], runs)
else
  redis.call('HSET', key, fields[2], tick, fields[4], runs)
end
return result(outcome, id)
