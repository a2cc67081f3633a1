-- Divide what is left of quotas between workers, in one call. Atomic, on the server's time.
-- KEYS[1]  a hash: worker -> record, '' -> '<when it was made, ms> <1 when wallets of an earlier one may still be spent>'
-- ARGV[1]  the worker; ARGV[2] for how long a wallet stands, ms; ARGV[3] when the hash it last saw was made, 0 for none
-- ARGV[4]  msgpack of [[limit's name, limit, used, wallet, demand, ms until nothing of it is used; 0 for what is used while it runs], ...]
-- A record is msgpack of [expires at ms, {name: [used, wallet, demand, used until ms]}].
-- Returns  [now ms, made ms, 1 when settled, workers, msgpack of [[wallet, used by others], ...]]
local key, me, stands_ms, seen_ms = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local found = redis.pcall('HGETALL', key)
if found.err then -- somebody else's value under our key
  redis.call('DEL', key)
  found = {}
end

local function sound(row)
  if type(row) ~= 'table' then return false end
  for at = 1, 4 do
    if type(row[at]) ~= 'number' or not (row[at] >= 0 and row[at] < 2 ^ 52) then return false end
  end
  return true
end

local used, wallets, demands, workers, made_ms, torn, broken = {}, {}, {}, 1, nil, false, false
for at = 1, #found, 2 do
  local worker, record = found[at], found[at + 1]
  if worker == '' then
    local made, mark = string.match(record, '^(%d+) ([01])$')
    made_ms, torn = tonumber(made), mark == '1'
  elseif worker ~= me then
    local ok, read = pcall(cmsgpack.unpack, record)
    local known = ok and type(read) == 'table' and type(read[1]) == 'number' and type(read[2]) == 'table' and read[1] <= now_ms + 60000
    local keep = false
    if known then
      local alive = read[1] > now_ms
      if alive then workers = workers + 1 end
      for name, row in pairs(read[2]) do
        if not sound(row) then
          known = false
        else
          -- What a worker had running ended with it; what it spent of a minute is spent for the rest of the minute.
          local counts = alive or (row[4] > now_ms and row[4] <= now_ms + 120000)
          if counts then used[name] = (used[name] or 0) + row[1] end
          if alive then
            wallets[name] = (wallets[name] or 0) + row[2]
            demands[name] = demands[name] or {}
            table.insert(demands[name], row[3])
          end
          keep = keep or counts
        end
      end
      keep = keep or alive
    end
    if not known then broken = true end
    if not known or not keep then redis.call('HDEL', key, worker) end
  end
end

-- A hash that has replaced another one, or has lost a record, does not know all that is spent: until everybody must have said so again,
-- no wallet grows.
local was_made_ms, was_torn = made_ms, torn
if broken or not made_ms or made_ms > now_ms then made_ms, torn = now_ms, broken end
if seen_ms > 0 and seen_ms ~= made_ms then torn = true end
if made_ms ~= was_made_ms or torn ~= was_torn then redis.call('HSET', key, '', string.format('%.0f %d', made_ms, torn and 1 or 0)) end
local settled = not torn or now_ms - made_ms >= stands_ms

local granted, rows = {}, {}
for at, ask in ipairs(cmsgpack.unpack(ARGV[4])) do
  local name, limit, mine, wallet, demand, lasts_ms = ask[1], ask[2], ask[3], ask[4], ask[5], ask[6]
  local free = limit - mine - (used[name] or 0)
  -- To each by what is asked of it; what cannot be divided is for whoever is asked most.
  local total, most, rest = demand, true, free
  for _, other in ipairs(demands[name] or {}) do total = total + other; most = most and other <= demand end
  for _, other in ipairs(demands[name] or {}) do rest = rest - math.floor(free * other / total) end
  local fair = most and rest or math.floor(free * demand / total)
  local grant = math.max(math.min(fair, free - (wallets[name] or 0)), 0)
  if not settled then grant = math.min(grant, wallet) end
  granted[at] = {grant, used[name] or 0}
  rows[name] = {mine, grant, demand, lasts_ms > 0 and now_ms + lasts_ms or 0}
end
if #granted > 0 then
  redis.call('HSET', key, me, cmsgpack.pack({now_ms + stands_ms, rows}))
  redis.call('PEXPIRE', key, math.max(stands_ms * 100, 120000))
end
return {now_ms, made_ms, settled and 1 or 0, workers, cmsgpack.pack(granted)}
