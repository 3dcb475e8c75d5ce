-- Removes a stream from the registry, if no sender has registered it lately and no group has
-- entries left on it.
-- KEYS: registry, stream, the stream's due. ARGV: stream, ms since the last registration, the
--       prefix of the stream's other keys.
-- Returns: 1 if it is no longer registered.
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score then return 1 end
if clock() - score < tonumber(ARGV[2]) then return 0 end
if redis.call('ZCARD', KEYS[3]) > 0 or redis.call('XLEN', ARGV[3] .. ':outbox') > 0 then return 0 end
if redis.call('TYPE', KEYS[2]).ok == 'stream' then
  local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
    local group = {}
    for i = 1, #info, 2 do group[info[i]] = info[i + 1] end
    local behind = newest and below(group['last-delivered-id'], newest[1])
    if group.pending > 0 or behind then return 0 end
    -- KEYS cannot list these keys, but they are in the stream's slot.
    local retry, due = ARGV[3] .. ':retry:' .. group.name, ARGV[3] .. ':due:' .. group.name
    if redis.call('XLEN', retry) > 0 or redis.call('ZCARD', due) > 0 then return 0 end
    if redis.call('ZCARD', ARGV[3] .. ':parking:' .. group.name) > 0 then return 0 end
  end
end
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
