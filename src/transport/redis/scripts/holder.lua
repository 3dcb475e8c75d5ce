-- The lease of a consumer in ms, and true if the consumer is of this library. After the lease the
-- entries of a silent consumer are claimed. The name of a consumer of this library contains its
-- lease: `<prefix>lease=<ms>ms-…`. Without one, its lease is `plain`. Consumers of other libraries
-- have the lease `foreign`.
local function lease_of(consumer, prefix, plain, foreign)
  if string.sub(consumer, 1, #prefix) ~= prefix then return tonumber(foreign), false end
  local own = string.match(consumer, '^lease=(%d+)ms%-', #prefix + 1)
  return tonumber(own or plain), true
end
