-- Counts a heartbeat of a member, and deletes dead members.
-- KEYS: members, a hash of heartbeats by member. ARGV: this member, then for each dead member: its
--       name, its heartbeats when it was last heard.
-- Returns: the hash.
for i = 2, #ARGV, 2 do
  -- A member whose counter has changed is alive.
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
return redis.call('HGETALL', KEYS[1])
