-- Returns true if it is this worker's turn: no worker has had one in the last `ms`. A server without
-- memory cannot store a turn. Then each worker has one, since these steps free memory.
local function turn(gate, me, ms)
  local function note(...)
    local noted = redis.pcall('SET', gate, me, 'PX', ms, ...)
    if noted and noted.err and not string.find(noted.err, 'OOM', 1, true) then
      -- Raise the same error.
      redis.call('SET', gate, me, 'PX', ms, ...)
    end
    return noted ~= false
  end
  if note('NX') then return true end
  -- A gate expires by the server's wall clock. After a step back it would stay closed for the size
  -- of the step, so a gate that is closed for longer than its period counts as open. Without
  -- permission for PTTL the worker waits.
  local left = redis.pcall('PTTL', gate)
  return type(left) == 'number' and (left < 0 or left > tonumber(ms)) and note()
end
