-- Renews the leases of the ids in ARGV from `first` to `last`. Those that are not pending for the
-- consumer are added to `lost`.
local function renew(src, group, me, first, last, lost)
  for i = first, last do
    if own(src, group, ARGV[i], me) then
      -- JUSTID does not increment the delivery count.
      redis.call('XCLAIM', src, group, me, 0, ARGV[i], 'JUSTID')
    else
      lost[#lost + 1] = ARGV[i]
    end
  end
  return lost
end
