-- Accepts a task with a delay or an idempotency key.
-- KEYS and ARGV: those of the function `accept`.
-- Returns: the id.
return accept(KEYS, ARGV, 1, #ARGV)
