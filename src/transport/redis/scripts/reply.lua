-- Stores replies and acknowledges their requests, each on its own: what is not this worker's any
-- more is passed over. The replies of one client are one entry, one on a line: an envelope holds
-- no line break.
-- KEYS: source, then the reply stream of each. ARGV: group, consumer, '1' on the retry stream, then
--       id and envelope of each, in ascending order of the ids.
-- Returns for each: 1 stored, 0 could not be (and acknowledged all the same), -1 not ours.
local src, group, me, retry = KEYS[1], ARGV[1], ARGV[2], ARGV[3] == '1'
local ids, done, results, entries = {}, {}, {}, {}
for i = 2, #KEYS do ids[i - 1] = ARGV[2 * i] end
local mine = owned(src, group, ids, me)
for i = 1, #ids do
  results[i] = -1
  if mine[ids[i]] then
    done[#done + 1] = ids[i]
    local entry = entries[KEYS[i + 1]] or {}
    entries[KEYS[i + 1]] = entry
    entry[#entry + 1] = ARGV[2 * i + 3]
  end
end
if #done == 0 then return results end
for stream, entry in pairs(entries) do
  -- A client that is gone has no stream, and gets none; a key of another type is not its stream.
  local lines = table.concat(entry, '\n')
  local stored = redis.pcall('XADD', stream, 'NOMKSTREAM', '*', 'r', lines)
  -- Without memory the replies wait until there is some. A server says so before the first write, so
  -- nothing was stored yet; this raises the same error.
  if type(stored) == 'table' and stored.err and string.find(stored.err, 'OOM', 1, true) then
    redis.call('XADD', stream, 'NOMKSTREAM', '*', 'r', lines)
  end
  entries[stream] = type(stored) == 'string' and 1 or 0
end
for i = 1, #ids do
  if mine[ids[i]] then results[i] = entries[KEYS[i + 1]] end
end
redis.call('XACK', src, group, unpack(done))
if retry then redis.call('XDEL', src, unpack(done)) end
return results
