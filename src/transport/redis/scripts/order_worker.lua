-- Gives an order to a worker.
-- KEYS: the announcements of the group, its orders. ARGV: the worker's consumer, worker, word,
--       argument, operator, the approximate number of orders to keep, ms for which they are kept.
-- Returns: 1, or 0 if the worker is not announced.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call(
  'XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*',
  'worker', ARGV[2], 'do', ARGV[3], 'to', ARGV[4], 'by', ARGV[5]
)
redis.call('PEXPIRE', KEYS[2], ARGV[7])
return 1
