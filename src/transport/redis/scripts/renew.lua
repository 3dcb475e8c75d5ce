-- Renews the leases of this consumer, and returns those that it has lost.
-- KEYS: source. ARGV: group, consumer, id….
-- Returns: {the time on Redis's clock, lost id…}.
return renew(KEYS[1], ARGV[1], ARGV[2], 3, #ARGV, { clock() })
