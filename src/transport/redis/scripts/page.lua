-- Reads a page of a stream, bounded in number and in bytes, beginning at `from`, as in XRANGE. Entries
-- are read one at a time, since the size of an entry is only known after it was read. The page ends with
-- the entry that reaches the bytes, so it has at least one entry.
-- Returns: {{{id, {field, value, ...}}, ...}, 1 if there may be more | 0}.
local function page(stream, from, most, room)
  local entries = {}
  while #entries < most and room > 0 do
    local entry = redis.call('XRANGE', stream, from, '+', 'COUNT', 1)[1]
    if not entry then return { entries, 0 } end
    for _, part in ipairs(entry[2]) do room = room - #part end
    entries[#entries + 1] = entry
    from = '(' .. entry[1]
  end
  return { entries, 1 }
end
