-- Posts one body over and over, and prints what came of it as one line of JSON.
-- BODY: file of the body. HEADERS: lines "name: value". COUNT: response header whose values are counted.
-- FRESH: "1" makes every body another one, by a number in the place of @@.
wrk.method = "POST"
local file = io.open(os.getenv("BODY"), "rb")
wrk.body = file:read("*a")
file:close()
for name, value in (os.getenv("HEADERS") or ""):gmatch("([^:\n]+): ([^\n]+)") do
  wrk.headers[name] = value
end

if os.getenv("FRESH") == "1" then
  local place = wrk.body:find("@@", 1, true)
  local before, after = wrk.body:sub(1, place - 1), wrk.body:sub(place + 2)
  local number = (os.time() % 900) * 0.1
  function request()
    number = number + 0.00001
    return wrk.format(nil, nil, nil, before .. string.format("%.5f", number) .. after)
  end
end

local threads = {}
function setup(thread)
  table.insert(threads, thread)
end

local counted = os.getenv("COUNT")
if counted and counted ~= "" then
  counts = {}
  function response(status, headers)
    local value = "none"
    for name, each in pairs(headers) do
      if name:lower() == counted then value = each end
    end
    value = status .. " " .. value
    counts[value] = (counts[value] or 0) + 1
  end
end

function done(summary, latency)
  local shares = {}
  for _, thread in ipairs(threads) do
    for value, count in pairs(thread:get("counts") or {}) do
      table.insert(shares, string.format('"%s": %d', value, count))
    end
  end
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, "max_ms": %.4f, "refused": %d, "broken": %d, "counts": {%s}}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    latency.max / 1000, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    table.concat(shares, ", ")))
end
