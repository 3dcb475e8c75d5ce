-- Returns the number of entries of these streams that are pending for the group.
local function pending_of(group, streams)
  local pending = 0
  for _, stream in ipairs(streams) do
    -- An error means that the stream or the group does not exist.
    local found = redis.pcall('XPENDING', stream, group)
    if not found.err then pending = pending + found[1] end
  end
  return pending
end
