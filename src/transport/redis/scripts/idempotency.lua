-- Idempotency keys. `<base>:idem:<key>` is the id of the task that was sent with the key and, after a
-- space, the digest of its content, if its sender has given one. It has a time to live. The task's
-- entry has the key in the field '~k'.

-- Returns the idempotency key of an entry's task, or nil, and the id of the task's receipt.
local function sent_with(fields, origin)
  local key, id
  for i = 1, #fields, 2 do
    if fields[i] == '~f' then return sent_with(unpacked(fields[i + 1]) or {}, origin) end
    if fields[i] == '~k' then key = fields[i + 1] end
    if fields[i] == '~i' then id = fields[i + 1] end
  end
  return key, id or origin
end

-- Frees the key of a task that has ended without success, so that the task can be sent again. Errors
-- are ignored, so that a worker without a right to the key can still end the task.
local function free_idempotency(base, key, id)
  local name = base .. ':idem:' .. key
  local holder = redis.pcall('GET', name)
  if type(holder) == 'string' and string.match(holder, '^%S+') == id then redis.pcall('DEL', name) end
end
