-- Whether it is this worker's turn: nobody else has asked in so many ms. A server that has no memory
-- left keeps no note of it. Everybody may go then, for what is done here makes room.
local function turn(gate, me, ms)
  local function note(...)
    local noted = redis.pcall('SET', gate, me, 'PX', ms, ...)
    if noted and noted.err and not string.find(noted.err, 'OOM', 1, true) then
      -- Raises the same error.
      redis.call('SET', gate, me, 'PX', ms, ...)
    end
    return noted ~= false
  end
  if note('NX') then return true end
  -- A gate expires by the server's wall clock. After a step back it would stay closed for as long as
  -- the step was: one that is closed for longer than its period counts as open. A user without the
  -- right to ask waits.
  local left = redis.pcall('PTTL', gate)
  return type(left) == 'number' and (left < 0 or left > tonumber(ms)) and note()
end
