-- The part of a tick that concerns the worker itself.

-- Announces a worker, or finds out whether it is announced. The announcements of a group live for
-- `life` ms after the last sign of life of any of its workers. Returns: {1 if it is announced, the
-- question that is asked or ''}.
local function present(base, group, me, announcement, life, alive)
  local key, known = base .. ':workers:' .. group, 1
  if announcement then
    redis.call('HSET', key, me, announcement)
  else
    known = redis.call('HEXISTS', key, me)
  end
  if announcement or alive then redis.call('PEXPIRE', key, life) end
  return { known, redis.call('GET', base .. ':asked:' .. group) or '' }
end

-- Returns: {id of the last order, {word, argument, operator} for each order to `worker` behind the
-- id `from`}. If `from` is '', returns no orders, since earlier orders are not for this worker.
local function orders(key, worker, from)
  if from == '' then
    if redis.call('EXISTS', key) == 0 then return { '0-0' } end
    local info = redis.call('XINFO', 'STREAM', key)
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then return { info[i + 1] } end
    end
  end
  local found = { from }
  for _, entry in ipairs(redis.call('XRANGE', key, '(' .. from, '+', 'COUNT', 100)) do
    local order = {}
    for i = 1, #entry[2], 2 do order[entry[2][i]] = entry[2][i + 1] end
    found[1] = entry[1]
    if order.worker == worker then
      found[#found + 1] = { order['do'] or '', order.to or '', order.by or '' }
    end
  end
  return found
end

-- Adds counts to the current minute of a group: ARGV[from], ARGV[from + 1], … ARGV[to] are fields
-- and numbers.
local function add_counts(base, group, time, from, to)
  if from > to then return 0 end
  local key = base .. ':minute:' .. string.format('%.0f', math.floor(time / 60000)) .. ':' .. group
  for i = from, to, 2 do redis.call('HINCRBY', key, ARGV[i], ARGV[i + 1]) end
  redis.call('PEXPIRE', key, 7200000)
  return 1
end
