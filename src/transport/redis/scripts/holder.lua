-- The lease of a consumer: how long it may be silent before its entries are claimed. Names of this
-- library's consumers contain it, `<prefix>lease=<ms>ms-…`. A name without it has the lease
-- `plain`, and other libraries' consumers have `foreign`. The second result is true for this
-- library's consumers.
local function lease_of(consumer, prefix, plain, foreign)
  if string.sub(consumer, 1, #prefix) ~= prefix then return tonumber(foreign), false end
  local own = string.match(consumer, '^lease=(%d+)ms%-', #prefix + 1)
  return tonumber(own or plain), true
end
