-- Records the number of partitions of a stream. A sender records only the first number. A worker
-- also records a higher one.
-- KEYS: record, a list of the numbers so far. ARGV: number, 1 for a worker or 0 for a sender.
-- Returns: the record before this call.
local record = redis.call('LRANGE', KEYS[1], 0, -1)
local current = tonumber(record[#record])
if not current or ARGV[2] == '1' and tonumber(ARGV[1]) > current then
  redis.call('RPUSH', KEYS[1], ARGV[1])
end
return record
