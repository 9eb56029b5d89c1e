"""The markers of counted messages: numbers in small sets, 9 bytes each, inside a script of Redis.

A marker is a hash of 63 bits. While a set holds integers and at most 512 of them (the server's
`set-max-intset-entries`), Redis keeps it as a sorted array of 8 bytes each. A string with a name of
its own would cost 150.

- **Slices.** Redis expires whole keys, so time is cut into slices of half the time that a marker
  has to live. Each slice has sets of its own, and they expire together. A marker is written to the
  current slice and looked up in the current and the two before it.
- **Sets.** A slice grows by linear hashing: for every 200 markers it gets one set more, which takes
  half of an older one's. A set that is about to be divided has 400 in the mean, and more than 480
  in one of 30,000 cases. A lookup reads one set of each slice, whatever the number of messages.

A message is taken for another one with the probability (markers that live) / 2^63: at 1,000
messages a second and a window of a day, one in 70 billion is not counted for this reason.

Knows identities and Redis's sets; nothing of what is counted.
"""

import hashlib

_PER_SET = 200
"""Mean number of markers in a set. One that is about to be divided has twice as many."""

_AT_ONCE = 2047
"""Bytes to hash at once. While hashlib hashes more, another thread of Python runs, for which this
one then waits up to 5 ms: a thousand times as long as the hash takes."""

MARKERS = f"""
-- Needs `now`: slices are cut by the server's clock, which all workers share.
local call, floor, frexp = redis.call, math.floor, math.frexp
-- KEYS[4] is the beginning of the names, ARGV[1] the seconds for which a marker lives.
local number = floor(now / ARGV[1] * 2)
local slice, slice_ends = KEYS[4] .. ':' .. number, math.ceil((number + 3) * ARGV[1] / 2)
local last, oldest = KEYS[4] .. ':' .. number - 1, KEYS[4] .. ':' .. number - 2
-- For each slice the number of sets, and the power of two above it.
local sets, above, last_sets, last_above, oldest_sets, oldest_above
do
  local counts = call('MGET', slice, last, oldest)
  local function size(count)
    if not count then return end
    local sets = math.max(1, math.ceil(count / {_PER_SET}))
    local _, exponent = frexp(sets)
    return sets, 2 ^ exponent
  end
  sets, above = size(counts[1] or 1)
  last_sets, last_above = size(counts[2])
  oldest_sets, oldest_above = size(counts[3])
end
-- Adds a marker to the current slice. Returns: its set, or nothing if it is in a slice already.
local function mark(marker)
  -- Its upper 32 bits; a number of Lua holds 53. Rounding gives a marker the same set each time.
  local hash = floor(tonumber(marker) / 2147483648)
  local set
  if last_sets then
    set = hash % last_above
    if set >= last_sets then set = set - last_above / 2 end
    if call('SISMEMBER', last .. ':' .. set, marker) == 1 then return end
  end
  if oldest_sets then
    set = hash % oldest_above
    if set >= oldest_sets then set = set - oldest_above / 2 end
    if call('SISMEMBER', oldest .. ':' .. set, marker) == 1 then return end
  end
  set = hash % above
  if set >= sets then set = set - above / 2 end
  set = slice .. ':' .. set
  if call('SADD', set, marker) == 1 then return set end
end
-- Notes the number of markers that were added, and makes room for more.
local function grow(added)
  local count = call('INCRBY', slice, added)
  if count == added then
    call('EXPIREAT', slice, slice_ends)
    call('EXPIREAT', slice .. ':0', slice_ends)
  end
  for new = sets, math.ceil(count / {_PER_SET}) - 1 do
    -- Markers of an older set belong into the new one if their hash says so.
    local _, exponent = frexp(new)
    local power = 2 ^ exponent
    local divided, moved = slice .. ':' .. new - power / 2, {{}}
    for _, marker in ipairs(call('SMEMBERS', divided)) do
      if floor(tonumber(marker) / 2147483648) % power == new then moved[#moved + 1] = marker end
    end
    if #moved > 0 then
      call('SADD', slice .. ':' .. new, unpack(moved))
      call('EXPIREAT', slice .. ':' .. new, slice_ends)
      call('SREM', divided, unpack(moved))
    end
  end
end
"""
"""Functions for a script: `mark` for each marker, then `grow` with the number of those that were
added and not removed again."""


def marker_of(*parts: bytes) -> str:
    """Hash an identity to a marker: 63 bits as a decimal number. Only the last part may have null
    bytes, which stand between the parts.
    """
    identity, hashed = b"\0".join(parts), hashlib.sha256()
    for start in range(0, len(identity), _AT_ONCE):
        hashed.update(identity[start : start + _AT_ONCE])
    return str(int.from_bytes(hashed.digest()[:8]) >> 1)
