-- Renew one worker's leases on the slots of all instances, in one call. Atomic, on the server's time.
-- KEYS[1]  a hash: worker -> record, '' -> '<when it was made, ms> <1 when leases of an earlier one may still stand>'
-- ARGV[1]  the worker; ARGV[2] for how long a lease stands, ms; ARGV[3] when the hash it last saw was made, 0 for none
-- ARGV[4]  msgpack of [[instance, own limit, wanted, held now, running, limit it vouches for or 0, figures for the others], ...]
-- A record is msgpack of [expires at ms, {instance: [leased, limit vouched for or 0, figures]}].
-- Returns  [now ms, made ms, 1 when settled, msgpack of [[leased, limit in force], ...], worker, record, worker, record, ...]
local key, me, stands_ms, seen_ms = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local found = redis.pcall('HGETALL', key)
if found.err then -- somebody else's value under our key
  redis.call('DEL', key)
  found = {}
end

local leased, vouched, others, made_ms, torn, broken = {}, {}, {}, nil, false, false
for at = 1, #found, 2 do
  local worker, record = found[at], found[at + 1]
  if worker == '' then
    local made, mark = string.match(record, '^(%d+) ([01])$')
    made_ms, torn = tonumber(made), mark == '1'
  elseif worker ~= me then
    local ok, read = pcall(cmsgpack.unpack, record)
    local known = ok and type(read) == 'table' and type(read[1]) == 'number' and type(read[2]) == 'table'
    if known and read[1] > now_ms and read[1] <= now_ms + 60000 then
      for instance, row in pairs(read[2]) do
        if type(row) ~= 'table' or type(row[1]) ~= 'number' or type(row[2]) ~= 'number' or row[1] < 0 then
          known = false
        else
          leased[instance] = (leased[instance] or 0) + row[1]
          if row[2] > 0 and row[2] < (vouched[instance] or math.huge) then vouched[instance] = row[2] end
        end
      end
      others[#others + 1] = worker
      others[#others + 1] = record
    end
    if not known then broken = true end
    if not known or read[1] <= now_ms then redis.call('HDEL', key, worker) end
  end
end

-- A hash that has replaced another one, or has lost a record, does not know all leases that still stand: until they must have been
-- renewed or have run out, nobody gets more than it holds.
local was_made_ms, was_torn = made_ms, torn
if broken or not made_ms or made_ms > now_ms then made_ms, torn = now_ms, broken end
if seen_ms > 0 and seen_ms ~= made_ms then torn = true end
if made_ms ~= was_made_ms or torn ~= was_torn then redis.call('HSET', key, '', string.format('%.0f %d', made_ms, torn and 1 or 0)) end
local settled = not torn or now_ms - made_ms >= stands_ms

local asked, granted, rows = cmsgpack.unpack(ARGV[4]), {}, {}
for at, ask in ipairs(asked) do
  local instance, limit, wanted, held, running, word = ask[1], ask[2], ask[3], ask[4], ask[5], ask[6]
  if word > 0 or vouched[instance] then limit = math.min(word > 0 and word or math.huge, vouched[instance] or math.huge) end
  if not settled then wanted = math.min(wanted, held) end
  local lease = math.max(math.min(wanted, limit - (leased[instance] or 0)), 0)
  granted[at] = {lease, limit}
  rows[instance] = {math.max(lease, running), word, ask[7]} -- what runs is counted, whatever was allowed
end
if #asked > 0 then
  redis.call('HSET', key, me, cmsgpack.pack({now_ms + stands_ms, rows}))
  redis.call('PEXPIRE', key, stands_ms * 100)
else
  redis.call('HDEL', key, me)
end
local answer = {now_ms, made_ms, settled and 1 or 0, cmsgpack.pack(granted)}
for at = 1, #others do answer[4 + at] = others[at] end
return answer
