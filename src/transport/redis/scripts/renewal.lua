-- Renews deliveries that a consumer holds on a stream: the ids in ARGV from `first` to `last`. Those
-- that it does not hold any more are added to `lost`.
local function renew(src, group, me, first, last, lost)
  for i = first, last do
    if own(src, group, ARGV[i], me) then
      -- JUSTID leaves the count of deliveries alone.
      redis.call('XCLAIM', src, group, me, 0, ARGV[i], 'JUSTID')
    else
      lost[#lost + 1] = ARGV[i]
    end
  end
  return lost
end
