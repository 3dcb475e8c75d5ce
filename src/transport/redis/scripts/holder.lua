-- The lease of a consumer: how long it may be silent before its entries are claimed. Names of this
-- library's consumers contain it, `<prefix>lease=<ms>ms-…`; for those that do not it is `plain`,
-- and for other libraries' consumers `foreign`. The second result is true for this library's
-- consumers.
local function lease_of(consumer, prefix, plain, foreign)
  if string.sub(consumer, 1, #prefix) ~= prefix then return tonumber(foreign), false end
  local own = string.match(consumer, '^lease=(%d+)ms%-', #prefix + 1)
  return tonumber(own or plain), true
end
