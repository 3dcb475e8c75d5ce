-- One call takes fewer than 8,000 arguments from Lua, so an entry with more values than this
-- travels on as one field `~f`: the list of its values as MessagePack.
local MOST_VALUES = 2000

-- Puts an entry's fields behind what `out` already has.
local function append(out, fields)
  if #fields > MOST_VALUES then
    out[#out + 1] = '~f'
    out[#out + 1] = cmsgpack.pack(fields)
    return
  end
  for i = 1, #fields do out[#out + 1] = fields[i] end
end

-- An entry's fields without those that are the transport's own on a retry stream: they are written
-- anew, and whoever sent the message has no say in them. A blob there is of our making and stays.
local function sent(fields, retry)
  local kept = {}
  for i = 1, #fields, 2 do
    local field = fields[i]
    if field ~= '~o' and field ~= '~a' and (retry or field ~= '~f') then
      kept[#kept + 1] = field
      kept[#kept + 1] = fields[i + 1]
    end
  end
  return kept
end

-- Adds a dead letter and keeps at most `most`; returns how many that dropped. The facts come first
-- and in this order, whatever the fields are called.
local function bury(dead, group, origin, reason, attempts, fields, most)
  local letter = {
    '~g', group, '~o', origin, '~r', reason, '~a', attempts, '~d', string.format('%.0f', clock())
  }
  append(letter, fields)
  redis.call('XADD', dead, '*', unpack(letter))
  return redis.call('XTRIM', dead, 'MAXLEN', most)
end
