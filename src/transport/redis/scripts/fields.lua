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

-- The fields in a blob, or nil where it does not hold pairs of texts: a sender may have written it,
-- and a command takes nothing but texts.
local function unpacked(blob)
  local good, fields = pcall(cmsgpack.unpack, blob)
  if not good or type(fields) ~= 'table' or #fields % 2 ~= 0 then return nil end
  for i = 1, #fields do
    if type(fields[i]) ~= 'string' then return nil end
  end
  return fields
end

-- Adds a dead letter and keeps at most `most`; returns how many that dropped, or nil and the error
-- where `add`, a `redis.pcall`, was refused. The facts come first and in this order, whatever the
-- fields are called.
local function bury(add, dead, group, origin, reason, attempts, fields, most)
  local letter = {
    '~g', group, '~o', origin, '~r', reason, '~a', attempts, '~d', string.format('%.0f', clock())
  }
  append(letter, fields)
  local added = add('XADD', dead, '*', unpack(letter))
  if type(added) == 'table' and added.err then return nil, added.err end
  return redis.call('XTRIM', dead, 'MAXLEN', most)
end
