-- Returns the server's facts about a group of a stream, by name. Nil without the group.
local function group_info(stream, group)
  if redis.call('EXISTS', stream) == 0 then return nil end
  for _, list in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local found = {}
    for i = 1, #list, 2 do found[list[i]] = list[i + 1] end
    if found.name == group then return found end
  end
end
