-- Renew one worker's leases on the slots of all instances, in one call. Begins with records.lua.
-- ARGV[4]  msgpack of [[instance, own limit, wanted, held now, running, limit it vouches for or 0, figures for the others, more of them], ...]
-- A row is instance -> [leased, limit vouched for or 0, figures, more of them].
-- Returns  [now ms, made ms, 1 when settled, msgpack of [[leased, limit in force], ...], worker, record, worker, record, ...]
local leased, vouched, others = {}, {}, {}
each_other(function(worker, read, record)
  if read[1] <= now_ms then return true, false end
  for instance, row in pairs(read[2]) do
    if type(row) ~= 'table' or type(row[1]) ~= 'number' or type(row[2]) ~= 'number' or row[1] < 0 then return false end
    leased[instance] = (leased[instance] or 0) + row[1]
    if row[2] > 0 and row[2] < (vouched[instance] or math.huge) then vouched[instance] = row[2] end
  end
  others[#others + 1] = worker
  others[#others + 1] = record
  return true, true
end)

local asked, granted, rows = cmsgpack.unpack(ARGV[4]), {}, {}
for at, ask in ipairs(asked) do
  local instance, limit, wanted, held, running, word = ask[1], ask[2], ask[3], ask[4], ask[5], ask[6]
  if word > 0 or vouched[instance] then limit = math.min(word > 0 and word or math.huge, vouched[instance] or math.huge) end
  if not settled then wanted = math.min(wanted, held) end
  local lease = math.max(math.min(wanted, limit - (leased[instance] or 0)), 0)
  granted[at] = {lease, limit}
  rows[instance] = {math.max(lease, running), word, ask[7], ask[8]} -- what runs is counted, whatever was allowed
end
if #asked > 0 then keep_mine(rows) elseif not overtaken then redis.call('HDEL', key, me) end
local answer = {now_ms, made_ms, settled and 1 or 0, cmsgpack.pack(granted)}
for at = 1, #others do answer[4 + at] = others[at] end
return answer
