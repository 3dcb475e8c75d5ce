-- Reads the entry of a delivery that is to be moved to another key. Returns 1, the entry's fields, and
-- the record and the id of its task, if it has a record. Otherwise: 0 if it is not pending for this
-- consumer | 2 if the entry was deleted | 3 if the task was cancelled. The delivery has then ended.
local function to_move(base, src, group, me, id, retry)
  if not own(src, group, id, me) then return 0 end
  local entry = redis.call('XRANGE', src, id, id)[1]
  if not entry then
    finish(src, group, id, retry)
    return 2
  end
  local record, task = recorded(base, group, all_fields(entry[2], retry))
  if record and is_cancelled(record) then
    end_cancelled(src, group, id, retry, record)
    give_back(base, group, entry[2], retry)
    return 3
  end
  return 1, entry[2], record, task
end
