-- Whether it is this worker's turn: nobody else has asked in so many ms. A server that has no memory
-- left keeps no note of it. Everybody may go then, for what is done here makes room.
local function turn(gate, me, ms)
  local noted = redis.pcall('SET', gate, me, 'NX', 'PX', ms)
  if noted and noted.err and not string.find(noted.err, 'OOM', 1, true) then
    -- Raises the same error.
    redis.call('SET', gate, me, 'NX', 'PX', ms)
  end
  return noted ~= false
end
