-- Divide what is left of quotas between workers, in one call. Begins with records.lua.
-- ARGV[4]  msgpack of [[limit's name, limit, used, wallet, demand, ms until nothing of it is used; 0 for what is used while it runs], ...]
-- A row is name -> [used, wallet, demand, used until ms].
-- Returns  [now ms, made ms, 1 when settled, workers, msgpack of [[wallet, used by others, wallet to come down to], ...]]
-- A wallet only grows here. Its worker may be spending from it while this runs, or never hear the answer: what it holds stays its own
-- until it says itself that it holds less.
local function sound(row)
  if type(row) ~= 'table' then return false end
  for at = 1, 4 do
    if type(row[at]) ~= 'number' or not (row[at] >= 0 and row[at] < 2 ^ 52) then return false end
  end
  return true
end

local used, wallets, demands, workers = {}, {}, {}, 1
each_other(function(_, read)
  local alive, keep = read[1] > now_ms, false
  if alive then workers = workers + 1 end
  for name, row in pairs(read[2]) do
    if not sound(row) then return false end
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
  return true, keep or alive
end)

local granted, rows = {}, {}
for at, ask in ipairs(cmsgpack.unpack(ARGV[4])) do
  local name, limit, mine, wallet, demand, lasts_ms = ask[1], ask[2], ask[3], ask[4], ask[5], ask[6]
  local free = limit - mine - (used[name] or 0)
  -- To each by what is asked of it; what cannot be divided is for whoever is asked most.
  local total, most, rest = demand, true, free
  for _, other in ipairs(demands[name] or {}) do total = total + other; most = most and other <= demand end
  for _, other in ipairs(demands[name] or {}) do rest = rest - math.floor(free * other / total) end
  local fair = math.max(most and rest or math.floor(free * demand / total), 0)
  local grant = wallet
  if settled then grant = math.max(math.min(fair, free - (wallets[name] or 0)), wallet) else fair = wallet end
  granted[at] = {grant, used[name] or 0, fair}
  rows[name] = {mine, grant, demand, lasts_ms > 0 and now_ms + lasts_ms or 0}
end
if #granted > 0 then keep_mine(rows) end
return {now_ms, made_ms, settled and 1 or 0, workers, cmsgpack.pack(granted)}
