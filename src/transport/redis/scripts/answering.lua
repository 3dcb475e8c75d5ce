-- Sends the reply to a request. `stream` is the reply stream, or nil if the reply is published on
-- `channel`, or not sent if that is empty. Returns: 1 sent | 0 not possible.
local function answer(stream, channel, envelope)
  local sent
  if stream then
    -- Only to an existing stream: a client that has ended must not get a new one.
    local function add(call) return call('XADD', stream, 'NOMKSTREAM', '*', 'r', envelope) end
    sent = add(redis.pcall)
    if type(sent) == 'table' then
      -- The requester chooses the key, so a key of another type must not fail the script.
      sent = not string.find(sent.err, 'WRONGTYPE', 1, true) and add(redis.call)
    end
  elseif channel ~= '' then
    -- Without permission to publish on the channel, the delivery still ends.
    sent = type(redis.pcall('PUBLISH', channel, envelope)) == 'number'
  end
  return sent and 1 or 0
end
