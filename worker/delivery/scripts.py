"""The steps of a delivery inside Redis: taken, given back, answered, acknowledged. One script each.

Faults are counted when an item is given back, so a delivery that ends with an outcome costs one
EXISTS more. Knows lists, tags and counts; nothing of what is in an item. Needs Redis 7 or Valkey.
"""

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import redis
from redis.exceptions import NoScriptError

from worker.delivery.markers import MARKERS
from worker.delivery.suspicion import FAULTS_BEFORE_SUSPICION, NOT_ALONE

FAULTS_EXPIRE = 7 * 86_400
"""Seconds without any fault after which all counts are dropped. A count is removed when its item is
acknowledged; this is for items that somebody deleted. A week outlasts any backlog."""


class Suspects(StrEnum):
    """When a request takes an item from the lists of suspects."""

    NEVER = "never"
    """The worker has something else in hand."""
    LAST = "last"
    """If nothing else waits."""
    FIRST = "first"
    """Before everything else."""


class Script:
    """A Lua script. Its text goes to Redis once; later calls name its digest."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def __call__(
        self, client: redis.Redis, keys: Sequence[str], *arguments: str | bytes | float
    ) -> Any:  # noqa: ANN401 - any reply
        """Run the script on `client`, or add it to a pipeline, which fails without `load`."""
        try:
            return client.evalsha(self.digest, len(keys), *keys, *arguments)
        except NoScriptError:
            return client.eval(self.text, len(keys), *keys, *arguments)

    def load(self, client: redis.Redis) -> None:
        """Make the script known to Redis."""
        client.script_load(self.text)


# A Redis without free memory refuses scripts that write unless they have the flag `allow-oom`.
# Taking messages out is what frees memory.
#
# A script that fails keeps the changes it has made. Therefore each writes an item to its new place
# before it removes it from the old one.

_NOW = """
-- The server's clock: those of two workers may differ by more than the visibility timeout.
local seconds, microseconds = unpack(redis.call('TIME'))
local now = seconds + microseconds / 1e6
"""

TAKE = Script(f"""#!lua flags=allow-oom
-- KEYS: unacked, its index, faults, the lists of suspects, then the other lists, in order.
-- ARGV: number of lists of suspects, then one delivery tag per list, when to take suspects, the
-- longest item to return, the number of bytes to return of a longer one.
-- Returns: the item, its tag, whether suspects wait, faults, length, digest. Faults are those of a
-- suspect. The length is that of an item of which only the beginning is returned.
local others = 4 + ARGV[1]
local suspects, longest, beginning = unpack(ARGV, #KEYS - 1)
{_NOW}
local function take(first, last)
  for i = first, last do
    local item = redis.call('LINDEX', KEYS[i], -1)
    if item then
      local tag = ARGV[i - 2]
      redis.call('HSET', KEYS[1], tag, item)
      redis.call('ZADD', KEYS[2], now, tag)
      redis.call('RPOP', KEYS[i])
      return item, tag
    end
  end
end
local item, tag, digest, faults, length
local function take_suspect()
  item, tag = take(4, others - 1)
  if item then
    digest = redis.sha1hex(item)
    faults = redis.call('HGET', KEYS[3], digest) or ''
  end
end
if suspects == 'first' then take_suspect() end
if not item then item, tag = take(others, #KEYS) end
if not item and suspects == 'last' then take_suspect() end
if item and #item > tonumber(longest) then
  length = #item
  digest = redis.sha1hex(item)
  item = string.sub(item, 1, beginning)
end
local waiting = 0
for i = 4, others - 1 do waiting = waiting + redis.call('EXISTS', KEYS[i]) end
return {{
  item or false, tag or false, waiting, faults or false, length or false, digest or false
}}
""")

_PUT_BACK = f"""
-- KEYS: unacked, its index, faults, then each queue followed by its list of suspects.
local function lists_of(tag)
  local queue = string.match(tag, '^[^/]*')
  for i = 4, #KEYS, 2 do
    if KEYS[i] == queue then return KEYS[i], KEYS[i + 1] end
  end
  -- Anyone may write any tag into the index. Nobody would read the item from the key that the tag
  -- names; in the first queue it is evaluated or becomes a dead letter.
  return KEYS[4], KEYS[5]
end
local function put_back(tag, is_fault)
  local item = redis.call('HGET', KEYS[1], tag)
  if item then
    local digest = redis.sha1hex(item)
    local faults = redis.call('HGET', KEYS[3], digest) or ''
    if is_fault then
      local position = redis.call('HGET', KEYS[3], digest .. '/at') or '{NOT_ALONE}'
      faults = faults .. ' ' .. position
    end
    -- The next delivery has not come to any message.
    redis.call('HDEL', KEYS[3], digest .. '/at')
    local _, count = string.gsub(faults, '%S+', '')
    local list, suspects = lists_of(tag)
    if count >= {FAULTS_BEFORE_SUSPICION} then list = suspects end
    if is_fault then
      -- Behind everything that waits, which may be sound.
      redis.call('LPUSH', list, item)
      redis.call('HSET', KEYS[3], digest, faults)
      redis.call('EXPIRE', KEYS[3], {FAULTS_EXPIRE})
    else
      -- At the end that is taken first, since it has waited longest.
      redis.call('RPUSH', list, item)
    end
  end
  redis.call('HDEL', KEYS[1], tag)
  redis.call('ZREM', KEYS[2], tag)
end
"""

PUT_BACK = Script(f"""#!lua flags=allow-oom
-- ARGV: the tag, 1 for a fault.
{_PUT_BACK}
put_back(ARGV[1], ARGV[2] == '1')
""")

RESTORE = Script(f"""#!lua flags=allow-oom
-- Puts back what workers took and neither acknowledged nor renewed: they are dead, or cut off.
-- ARGV: the visibility timeout, the most items. Returns: the number of items.
{_PUT_BACK}
{_NOW}
local old = now - ARGV[1]
local tags = redis.call('ZRANGE', KEYS[2], '-inf', old, 'BYSCORE', 'LIMIT', 0, ARGV[2])
for _, tag in ipairs(tags) do put_back(tag, true) end
return #tags
""")

RENEW = Script(f"""#!lua flags=allow-oom
-- KEYS: the index. ARGV: tags.
{_NOW}
for _, tag in ipairs(ARGV) do
  -- Only existing entries: an acknowledged message must not come back.
  redis.call('ZADD', KEYS[1], 'XX', now, tag)
end
""")

_ACKNOWLEDGE = """
-- KEYS: unacked, its index, faults.
local function acknowledge(tag)
  if redis.call('EXISTS', KEYS[3]) == 1 then
    local item = redis.call('HGET', KEYS[1], tag)
    if item then
      local digest = redis.sha1hex(item)
      redis.call('HDEL', KEYS[3], digest, digest .. '/at')
    end
  end
  redis.call('HDEL', KEYS[1], tag)
  redis.call('ZREM', KEYS[2], tag)
end
"""

ACKNOWLEDGE = Script(f"""#!lua flags=allow-oom
-- ARGV: the tag.
{_ACKNOWLEDGE}
acknowledge(ARGV[1])
""")

STORE = Script(f"""#!lua flags=allow-oom
-- Stores outcomes: the markers that they were counted, entries in the streams, the results.
-- KEYS: unacked, its index, faults, markers, the caller's last attempt, the keys of all results.
-- ARGV: seconds a marker lives, token of this attempt, then for each outcome: its marker, or
-- nothing; the tag of the item that ends with it, or nothing; milliseconds its results live; their
-- number; the results; the number of arguments that follow; a stream, its length, the entry's
-- fields.
-- Returns: 1 for each outcome that is the first of its message, 0 for others.
{_NOW}
{_ACKNOWLEDGE}
{MARKERS}
-- The token, and the places of the outcomes that this attempt counted: if it is repeated because
-- the reply was lost, they still count.
local noted
local function is_ours(place)
  if not noted then
    noted = call('GET', KEYS[5]) or ''
    if string.find(noted, ARGV[2], 1, true) ~= 1 then noted = ARGV[2] .. ' ' end
  end
  return string.find(noted, ' ' .. place .. ' ', 1, true)
end
local function store(argument, key, is_first)
  local lives, results = ARGV[argument + 2], ARGV[argument + 3]
  for i = 1, results do
    call('SET', KEYS[key + i], ARGV[argument + 3 + i], 'PX', lives)
    call('PUBLISH', KEYS[key + i], ARGV[argument + 3 + i])
  end
  argument = argument + 4 + results
  local fields = ARGV[argument]
  if is_first and fields ~= '0' then
    call('XADD', ARGV[argument + 1], 'MAXLEN', '~', unpack(ARGV, argument + 2, argument + fields))
  end
  return argument + fields + 1, key + results
end
local argument, key, added, failure = 3, 5, 0
local places, tags, replies = {{}}, {{}}, {{}}
while argument <= #ARGV do
  local place = #replies + 1
  local marker, tag = ARGV[argument], ARGV[argument + 1]
  local set, is_first
  if marker ~= '' then
    set = mark(marker)
    is_first = set
  else
    -- An item without a name is counted by its delivery. It may have gone to another worker.
    is_first = call('HEXISTS', KEYS[1], tag) == 1
  end
  local stored, argument_or_error, next_key = pcall(store, argument, key, is_first)
  if not stored then
    -- With the marker, the next attempt would not add the entry.
    if set then call('SREM', set, marker) end
    -- Redis gives a table here, Valkey a string.
    failure = type(argument_or_error) == 'table' and argument_or_error.err or argument_or_error
    break
  end
  argument, key = argument_or_error, next_key
  if set then added = added + 1 end
  if is_first then places[#places + 1] = place end
  if tag ~= '' then tags[#tags + 1] = tag end
  replies[place] = (is_first or is_ours(place)) and 1 or 0
end
if #places > 0 then
  noted = (noted or ARGV[2] .. ' ') .. table.concat(places, ' ') .. ' '
  call('SET', KEYS[5], noted, 'EX', ARGV[1])
end
if added > 0 then grow(added) end
for _, tag in ipairs(tags) do acknowledge(tag) end
return failure and redis.error_reply(failure) or replies
""")

STORE_LIST = Script("""#!lua flags=allow-oom
-- KEYS: the key of a batch's list of outcomes. ARGV: milliseconds it lives, the list.
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[1])
redis.call('PUBLISH', KEYS[1], ARGV[2])
""")

NOTE = Script("""#!lua flags=allow-oom
-- Notes outcomes of a batch, so that another delivery of it does not evaluate their messages again.
-- KEYS: the batch's outcomes. ARGV: seconds they live, then positions, each with its outcome.
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('EXPIRE', KEYS[1], ARGV[1])
""")

MARK = Script("""#!lua flags=allow-oom
-- KEYS: faults. ARGV: the digest of a suspect, the position that is evaluated alone from now on.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], ARGV[1] .. '/at', ARGV[2])
end
""")
