"""Which records the two streams keep, decided inside Redis by the script that stores outcomes.

- **Admission.** Each hour, the first failures of an agent, lane, `known` and pattern are kept, as
  many as `SQE_FAILURES_PER_HOUR`; after these only the 2nd, 4th, 8th, ... multiple of this number.
  So the beginning of a drift stays for long, however often the agent fails afterwards, and no
  agent takes the room of another. What was left out before an entry is in its field `left_out`.
- **Agents.** Those without a place among the agents' figures (`worker.delivery.agents`) share one
  part, as `other`. So a flood of agents neither fills Redis nor the stream.
- **Bytes.** The lengths of all entries are added up. Whenever another part of `SQE_…_MAXBYTES` is
  full, the place is marked, and everything before the oldest of `MARKS` marks is dropped. So
  nothing is read to drop entries, and a stream that somebody trims or deletes agrees again.

Knows verdicts and the arguments of an entry; nothing of what is in a record.
"""

from schemas import Verdict
from worker.delivery.agents import OTHER_AGENTS

MARKS = 32
"""Marks of a stream. About 3 % of it are dropped at once."""

ADDED, DROPPED = " added", " dropped"
"""Ends of the fields of `EVIDENCE`, after a stream's name: bytes that were ever added to it, and
that were dropped from it."""

MARKED = ":marks"
"""End of the name of a stream's list of marks: ids, each with the bytes that were added before."""

LEFT_OUT = "left_out"
"""Field of `EVIDENCE`: failures that were not kept. Also the field of an entry."""

ENTRY_BYTES = 64
"""Redis's own bytes for an entry, about, beyond those of its fields."""

_HOUR = 3600
_EXPIRES = 2 * _HOUR
"""Seconds for which the numbers of an hour are kept. The hour is the server's."""


def group_of(verdict: Verdict, *, live: bool) -> str:
    """Name the failures with which an unsolved message shares what is kept."""
    lane = "live" if live else "backfill"
    return f"{verdict.agent_id} {lane} {str(verdict.known).lower()} {verdict.failure_pattern}"


EVIDENCE = f"""
-- Needs `now`. KEYS[6]: the hash of agents' figures. KEYS[8]: the hash of bytes, and the beginning
-- of the names of the hours' hashes.
local left_out = 0
-- Returns: the failures of the group that were left out before this one; nothing if this one is.
local function admit(group, full)
  local agent, rest = string.match(group, '^(%S+)(.*)$')
  if call('HEXISTS', KEYS[6], agent) == 0 then group = '{OTHER_AGENTS}' .. rest end
  local hour = KEYS[8] .. ':' .. floor(now / {_HOUR})
  local number = call('HINCRBY', hour, group, 1)
  if number == 1 then call('EXPIRE', hour, {_EXPIRES}) end
  if number <= full then return 0 end
  -- Of a power of two, the mantissa is a half.
  if frexp(number / full) == 0.5 then return number / 2 - 1 end
end
-- Adds the bytes of an entry to those of its stream, and drops the oldest entries for them.
local function make_room(stream, longest, id, size)
  local total = call('HINCRBY', KEYS[8], stream .. '{ADDED}', size)
  local part = longest / {MARKS + 2}
  if floor(total / part) == floor((total - size) / part) then return end
  local marks = stream .. '{MARKED}'
  if call('RPUSH', marks, id .. ' ' .. total - size) > {MARKS} then
    local oldest, before = string.match(call('LPOP', marks), '^(%S+) (%d+)$')
    call('XTRIM', stream, 'MINID', oldest)
    call('HSET', KEYS[8], stream .. '{DROPPED}', before)
  end
end
-- Keeps a record, or leaves it out. ARGV from `first` to `last`: the stream, its longest length in
-- bytes, how many failures of a group are kept each hour, the group, or nothing for a record that
-- is always kept, the entry's id and fields.
local function keep(first, last)
  local stream, longest, full, group = unpack(ARGV, first, first + 3)
  local before = 0
  if group ~= '' then
    -- Somebody else's key in the place of these must not stop an outcome.
    local decided, number = pcall(admit, group, tonumber(full))
    before = not decided and 0 or number
    if not before then
      left_out = left_out + 1
      return
    end
  end
  local entry, size = {{unpack(ARGV, first + 4, last)}}, {ENTRY_BYTES}
  for place = 2, #entry do size = size + #entry[place] end
  if before > 0 then
    entry[#entry + 1] = '{LEFT_OUT}'
    entry[#entry + 1] = before
  end
  local id = call('XADD', stream, unpack(entry))
  pcall(make_room, stream, longest, id, size)
end
local function count_left_out()
  if left_out > 0 then call('HINCRBY', KEYS[8], '{LEFT_OUT}', left_out) end
end
"""
"""Functions for a script: `keep` for each record, then `count_left_out` once."""
