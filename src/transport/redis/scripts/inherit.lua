-- Makes the entries that are pending for former owners of a partition pending for its owner. Does
-- not change their numbers of deliveries.
-- KEYS: source, owner. ARGV: group, consumer, term, where to start, max entries to look at.
-- Returns: {entries that were inherited, where to continue ('' = all were looked at)}, or {-1, ''}
--          if the partition has another owner.
local src, group, me, most = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[5])
if redis.call('HGET', KEYS[2], 'term') ~= ARGV[3] then return { -1, '' } end
local pending = redis.call('XPENDING', src, group, ARGV[4], '+', most)
local inherited = 0
for _, entry in ipairs(pending) do
  if entry[2] ~= me then
    redis.call('XCLAIM', src, group, me, 0, entry[1], 'RETRYCOUNT', entry[4], 'JUSTID')
    inherited = inherited + 1
  end
end
if #pending < most then return { inherited, '' } end
return { inherited, '(' .. pending[#pending][1] }
