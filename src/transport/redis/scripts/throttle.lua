-- Returns true if this worker may do a step of upkeep: no worker has done the step in the last
-- `ms`, as the throttle at `key` shows. A server without memory cannot store a throttle. Then each
-- worker may do the step, since these steps free memory.
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
  -- A throttle expires by the server's wall clock. After a step back it would last for the size of
  -- the step, so one that would last for longer than its period has no effect. Without permission
  -- for PTTL the worker waits.
  local left = redis.pcall('PTTL', key)
  return type(left) == 'number' and (left < 0 or left > tonumber(ms)) and set()
end
