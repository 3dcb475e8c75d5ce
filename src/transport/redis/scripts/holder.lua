-- How long a consumer may be silent before others claim what it holds: consumers of this library carry
-- their lease in their names, `<prefix>lease=<ms>ms-…`. For those that do not, `plain` holds, and for
-- consumers of other libraries `foreign`. The second result says whether it is one of ours.
local function lease_of(consumer, prefix, plain, foreign)
  if string.sub(consumer, 1, #prefix) ~= prefix then return tonumber(foreign), false end
  local own = string.match(consumer, '^lease=(%d+)ms%-', #prefix + 1)
  return tonumber(own or plain), true
end
