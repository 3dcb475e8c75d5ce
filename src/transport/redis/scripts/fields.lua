-- Lua passes fewer than 8,000 arguments to a command. An entry with more than MOST_VALUES values is
-- stored as one field `~f`, a MessagePack list of them.
local MOST_VALUES = 2000

-- Appends an entry's fields to `out`.
local function append(out, fields)
  if #fields > MOST_VALUES then
    out[#out + 1] = '~f'
    out[#out + 1] = cmsgpack.pack(fields)
    return
  end
  for i = 1, #fields do out[#out + 1] = fields[i] end
end

-- Returns an entry's fields without the internal ones, which a sender could have set. Keeps `~f` on
-- a retry stream, since only the transport writes there.
local function sent(fields, retry)
  local kept = {}
  for i = 1, #fields, 2 do
    local field = fields[i]
    local facts = field == '~o' or field == '~a' or field == '~u' or field == '~h'
    if not facts and (retry or field ~= '~f') then
      kept[#kept + 1] = field
      kept[#kept + 1] = fields[i + 1]
    end
  end
  return kept
end

-- Returns the fields in a `~f`. Nil if it is not a list of pairs of strings: a sender may have
-- written it, and commands take only strings.
local function unpacked(blob)
  local good, fields = pcall(cmsgpack.unpack, blob)
  if not good or type(fields) ~= 'table' or #fields % 2 ~= 0 then return nil end
  for i = 1, #fields do
    if type(fields[i]) ~= 'string' then return nil end
  end
  return fields
end

-- Returns the fields of an entry on a retry stream, or of a parked entry, including those in a
-- `~f`.
local function unpacked_entry(fields)
  for i = 1, #fields, 2 do
    if fields[i] == '~f' then return unpacked(fields[i + 1]) or fields end
  end
  return fields
end

-- Returns the fields of an entry. Includes those in a `~f` only on a retry stream, since elsewhere
-- a sender may have written the `~f`.
local function all_fields(fields, retry) return retry and unpacked_entry(fields) or fields end

-- Adds a dead letter and keeps at most `most`. Returns the number of letters dropped, or nil and
-- the error if `add` is `redis.pcall` and the server refuses. The facts come first, in this order,
-- since the message's fields may have the same names.
local function dead_letter(add, dead, group, origin, reason, attempts, fields, most)
  local letter = {
    '~g', group, '~o', origin, '~r', reason, '~a', attempts, '~d', string.format('%.0f', clock())
  }
  append(letter, fields)
  local added = add('XADD', dead, '*', unpack(letter))
  if type(added) == 'table' and added.err then return nil, added.err end
  return redis.call('XTRIM', dead, 'MAXLEN', most)
end
