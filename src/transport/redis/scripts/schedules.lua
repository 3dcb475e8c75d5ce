-- The scheduled tasks of a stream are one hash. Its fields, for the schedule NAME:
--   definition:NAME  JSON
--   version:NAME     a definition does not replace one with a higher version
--   ticks:NAME       the rule for the ticks, as text: if it changes, the schedule begins anew
--   group:NAME       the group to which unique and tracked tasks belong
--   last:NAME        ms of the last tick that was sent or skipped, or of the beginning
--   paused:NAME      '1', or missing
--   revision:NAME    the value of `changes` when the schedule was last stored, paused or resumed
--   runs:NAME        the last runs, a line each: ms, 'sent' or 'skipped', 'tick' or 'manual', the task's id
-- and `changes`: the number of times that a schedule was stored, removed, paused or resumed.
local PARTS = { 'definition', 'version', 'ticks', 'group', 'last', 'paused', 'revision', 'runs' }

-- Counts a change, so that processes list the schedules again. Returns its number.
local function changed(key) return redis.call('HINCRBY', key, 'changes', 1) end

local function milliseconds(time) return string.format('%.0f', time) end
