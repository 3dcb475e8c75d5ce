-- Returns true if this worker may do a step of the upkeep, since no worker has done it in the last
-- `ms`. The key `key` exists for that time. A server without memory cannot store the key. Then
-- every worker may do the step, since these steps free memory.
local function throttle(key, me, ms)
  local function set(...)
    local stored = redis.pcall('SET', key, me, 'PX', ms, ...)
    if stored and stored.err and not string.find(stored.err, 'OOM', 1, true) then
      -- Raise the same error.
      redis.call('SET', key, me, 'PX', ms, ...)
    end
    return stored ~= false
  end
  if set('NX') then return true end
  -- The key expires by the server's wall clock. After the clock stepped back, it would last longer
  -- by the size of the step. So a key that would last longer than `ms` has no effect. Without
  -- permission for PTTL, the worker waits.
  local left = redis.pcall('PTTL', key)
  return type(left) == 'number' and (left < 0 or left > tonumber(ms)) and set()
end
