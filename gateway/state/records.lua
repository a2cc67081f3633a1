-- What slots.lua and quotas.lua begin with: the records of all workers, in one hash. Atomic, on the server's time.
-- KEYS[1]  the hash: worker -> record, '' -> '<when it was made, ms> <1 when records of an earlier one may still stand>'
-- ARGV[1]  the worker; ARGV[2] for how long its record stands, ms; ARGV[3] when the hash it last saw was made, 0 for none
-- ARGV[5]  the number of this call, larger than of any before from this worker; ARGV[6] 1 when what it held has run out meanwhile
-- A record is msgpack of [expires at ms, {name: row}, number of the call].
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
  local torn, broken = false, false
  for at = 1, #found, 2 do
    local worker, record = found[at], found[at + 1]
    if worker == '' then
      local made, mark = string.match(record, '^(%d+) ([01])$')
      made_ms, torn = tonumber(made), mark == '1'
    elseif worker ~= me then
      local ok, read = pcall(cmsgpack.unpack, record)
      local sound, keep = false, false
      if ok and type(read) == 'table' and type(read[1]) == 'number' and type(read[2]) == 'table' and read[1] <= now_ms + 60000 then
        sound, keep = look(worker, read, record)
      end
      if not sound then broken = true end
      if not sound or not keep then redis.call('HDEL', key, worker) end
    else
      local ok, mine = pcall(cmsgpack.unpack, record)
      overtaken = ok and type(mine) == 'table' and type(mine[3]) == 'number' and mine[3] > call
    end
  end
  -- A hash that has replaced another one, or has lost a record, does not know all that others hold: until all of it must have been
  -- renewed or have run out, nobody gets more than it has.
  local was_made_ms, was_torn = made_ms, torn
  if broken or not made_ms or made_ms > now_ms then made_ms, torn = now_ms, broken end
  if seen_ms > 0 and seen_ms ~= made_ms then torn = true end
  -- One that could not call may be the first of many who go on with something that nobody knows of here.
  if ARGV[6] == '1' then made_ms, torn = now_ms, true end
  if made_ms ~= was_made_ms or torn ~= was_torn then redis.call('HSET', key, '', string.format('%.0f %d', made_ms, torn and 1 or 0)) end
  settled = not torn or now_ms - made_ms >= stands_ms
end

local function keep_mine(rows)
  if overtaken then return end
  redis.call('HSET', key, me, cmsgpack.pack({now_ms + stands_ms, rows, call}))
  redis.call('PEXPIRE', key, math.max(stands_ms * 100, 120000))
end

