-- Counts one more delivery of an entry that its consumer keeps.
-- KEYS: source. ARGV: group, consumer, id.
-- Returns: 1 counted | 0 not pending for this consumer.
local src, group, me, id = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if not own(src, group, id, me) then return 0 end
local count = redis.call('XPENDING', src, group, id, id, 1, me)[1][4]
redis.call('XCLAIM', src, group, me, 0, id, 'RETRYCOUNT', count + 1, 'JUSTID')
return 1
