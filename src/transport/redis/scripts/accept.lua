-- Accepts a task with a delay, a key or a record.
-- KEYS and ARGV: those of the function `accept`.
-- Returns: its results.
return { accept(KEYS, ARGV, 1, #ARGV) }
