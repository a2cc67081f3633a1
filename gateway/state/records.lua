-- What slots.lua and quotas.lua begin with: the records of all workers, in one hash. Atomic, on the server's time.
-- KEYS[1]  the hash: worker -> record, '' -> '<when it was made, ms> <1 or 2 when records of an earlier one may still stand>'
-- ARGV[1]  the worker; ARGV[2] for how long its record stands, ms; ARGV[3] when the hash it last saw was made, 0 for none
-- ARGV[5]  the number of this call, larger than of any before from this worker; ARGV[6] 1 when what it held has run out meanwhile;
-- ARGV[7]  msgpack of the other workers that it has known since it last heard that all was settled, if that is to count
-- A record is msgpack of [expires at ms, {name: row}, number of the call, ARGV[7] while something is unsettled].
local key, me, stands_ms, seen_ms, call = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local made_ms, settled
local overtaken = false -- a server that was paused finds calls that were given up long ago, and later ones: those count

-- Calls look(worker, read, record) for every other worker's. It says whether the rows are sound, and whether to keep them.
local function each_other(look)
  local found = redis.pcall('HGETALL', key)
  if found.err then -- somebody else's value under our key
    redis.call('DEL', key)
    found = {}
  end
  local torn, broken, there, known = 0, false, {[me] = true}, {}
  local function knows(packed)
    local ok, workers = pcall(cmsgpack.unpack, packed)
    if ok and type(workers) == 'table' then for _, worker in pairs(workers) do known[worker] = true end end
  end
  for at = 1, #found, 2 do
    local worker, record = found[at], found[at + 1]
    if worker == '' then
      local made, mark = string.match(record, '^(%d+) ([012])$')
      made_ms, torn = tonumber(made), tonumber(mark) or 0
    elseif worker ~= me then
      local ok, read = pcall(cmsgpack.unpack, record)
      local sound, keep = false, false
      if ok and type(read) == 'table' and type(read[1]) == 'number' and type(read[2]) == 'table' and read[1] <= now_ms + 60000 then
        sound, keep = look(worker, read, record)
      end
      if not sound then broken = true end
      if not sound or not keep then redis.call('HDEL', key, worker) else there[worker] = true end
      if sound and keep and type(read[4]) == 'string' then knows(read[4]) end
    else
      local ok, mine = pcall(cmsgpack.unpack, record)
      overtaken = ok and type(mine) == 'table' and type(mine[3]) == 'number' and mine[3] > call
    end
  end
  -- A hash that has replaced another one, or has lost a record, does not know all that others hold: until all of it must have been
  -- renewed or have run out, nobody gets more than it has.
  local was_made_ms, was_torn = made_ms, torn
  if broken or not made_ms or made_ms > now_ms then made_ms, torn = now_ms, broken and 1 or 0 end
  if seen_ms > 0 and seen_ms ~= made_ms then torn = math.max(torn, 1) end
  -- One that could not call may be the first of many who go on with something that nobody knows of here.
  if ARGV[6] == '1' then made_ms, torn = now_ms, 2 end
  -- But where everybody that anybody knew has told anew what it holds, nothing is left to wait for.
  if torn == 1 and ARGV[7] then
    knows(ARGV[7])
    torn = 0
    for worker in pairs(known) do if not there[worker] then torn = 1 end end
  end
  if made_ms ~= was_made_ms or torn ~= was_torn then redis.call('HSET', key, '', string.format('%.0f %d', made_ms, torn)) end
  settled = torn == 0 or now_ms - made_ms >= stands_ms
end

local function keep_mine(rows)
  if overtaken then return end
  redis.call('HSET', key, me, cmsgpack.pack({now_ms + stands_ms, rows, call, not settled and ARGV[7] or nil}))
  redis.call('PEXPIRE', key, math.max(stands_ms * 100, 120000))
end

