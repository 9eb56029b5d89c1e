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

from worker.broker.contract import MAX_BATCH, MESSAGES
from worker.broker.keys import LIVE_QUEUE, queue_lists
from worker.delivery.agents import AGENTS, Counted
from worker.delivery.evidence import EVIDENCE
from worker.delivery.markers import MARKERS
from worker.delivery.suspicion import FAULTS_BEFORE_SUSPICION, NOT_ALONE

FAULTS_EXPIRE = 7 * 86_400
"""Seconds without any fault after which all counts are dropped. A count is removed when its item is
acknowledged; this is for items that somebody deleted. A week outlasts any backlog."""


HEAD_BYTES = 1024
"""Bytes at the beginning of a batch in which its header `MESSAGES` is. The client's headers take
less than half of them."""

LISTS = len(queue_lists(LIVE_QUEUE))
"""Number of lists that make up a queue, one for each of Celery's priorities."""


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
        """Run the script on `client`, or add it to a pipeline; see `load_scripts`."""
        try:
            return client.evalsha(self.digest, len(keys), *keys, *arguments)
        except NoScriptError:
            return client.eval(self.text, len(keys), *keys, *arguments)


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

_MESSAGES = f"""
-- The number of messages of a batch whose sender says it, at most {MAX_BATCH}; otherwise 1. The
-- client's headers come first. In the text of a message, quotes have backslashes.
local function messages_of(item)
  local count = string.match(string.sub(item, 1, {HEAD_BYTES}), '"{MESSAGES}": ?(%d+)')
  count = tonumber(count or 1)
  return count >= 1 and count <= {MAX_BATCH} and count or 1
end
"""

TAKE = Script(f"""#!lua flags=allow-oom
-- KEYS: unacked, its index, faults, each queue's list of suspects, each queue's other lists, and
-- the messages of batches.
-- ARGV: number of queues, when to take suspects, the longest item to return, the number of bytes to
-- return of a longer one, the most items, the bytes after which no further item is taken, the name
-- of a batch's task, the beginning of all tags, then how many items to take of each queue.
-- Returns: the items, and how many lists of suspects have any. An item is its bytes and its tag,
-- then, if it is a suspect or long, its faults if it is a suspect, its length if only its beginning
-- is returned, and its digest.
-- Mostly there is nothing, and finding that out one by one takes three times as long.
if redis.call('EXISTS', unpack(KEYS, 4, #KEYS - 1)) == 0 then return {{{{}}, 0}} end
local queues = tonumber(ARGV[1])
local suspects, longest, beginning, most, enough, batch, unique = unpack(ARGV, 2, 8)
longest, most, enough = tonumber(longest), tonumber(most), tonumber(enough)
{_NOW}
{_MESSAGES}
local call, time = redis.call, string.format('%.6f', now)
local function first_list(queue) return 4 + queues + (queue - 1) * {LISTS} end
-- What was taken is written and removed at the end, in one command for all, since a command costs
-- more than what it does for an item.
local taken, size = {{}}, 0
local items, entries, removed, further = {{}}, {{}}, {{}}, {{}}
local function take(list, queue, place, is_suspect)
  local before = removed[list] or 0
  local item = call('LINDEX', list, -1 - before)
  if not item then return nil end
  local is_long, is_batch, messages = #item > longest, false, 1
  -- The name elsewhere in the item only ends this queue's share of the request early.
  if not is_long then is_batch = string.find(item, batch, 1, true) end
  if is_long or is_batch then messages = messages_of(item) end
  local tag = KEYS[first_list(queue)] .. '/' .. unique .. '-' .. #taken
  if messages > 1 then
    tag = tag .. '.' .. messages
    further[queue] = (further[queue] or 0) + messages - 1
  end
  if place > 0 then tag = tag .. '/' .. place end
  local at = 2 * #taken
  items[at + 1], items[at + 2] = tag, item
  entries[at + 1], entries[at + 2] = time, tag
  removed[list] = before + 1
  size = size + #item
  local returned = {{item, tag}}
  if is_suspect or is_long then
    local digest = redis.sha1hex(item)
    local faults = is_suspect and (call('HGET', KEYS[3], digest) or '')
    local length = is_long and #item
    if is_long then item = string.sub(item, 1, beginning) end
    returned = {{item, tag, faults, length, digest}}
  end
  table.insert(taken, returned)
  return is_batch and 'batch' or 'item'
end
local function take_suspect()
  for queue = 1, queues do
    if take(KEYS[3 + queue], queue, 0, true) then return end
  end
end
-- Takes batches' messages from the number of those that wait. Rubbish in its place stops nothing.
local function count_out(queue, messages)
  local first = first_list(queue)
  local left = redis.pcall('HINCRBY', KEYS[#KEYS], KEYS[first], -messages)
  -- Somebody may have removed batches by other means.
  local lists = {{KEYS[3 + queue], unpack(KEYS, first, first + {LISTS} - 1)}}
  if left ~= 0 and call('EXISTS', unpack(lists)) == 0 then
    redis.pcall('HDEL', KEYS[#KEYS], KEYS[first])
  end
end
if suspects == 'first' then take_suspect() end
if #taken == 0 then
  for queue = 1, queues do
    local room = tonumber(ARGV[8 + queue])
    for place = 0, {LISTS} - 1 do
      while room > 0 and #taken < most and size < enough do
        local kind = take(KEYS[first_list(queue) + place], queue, place, false)
        if not kind then break end
        room = kind == 'batch' and 0 or room - 1
      end
    end
  end
end
if #taken == 0 and suspects == 'last' then take_suspect() end
if #taken > 0 then
  call('HSET', KEYS[1], unpack(items))
  call('ZADD', KEYS[2], unpack(entries))
  -- Unlike RPOP, it does not return the items.
  for list, count in pairs(removed) do call('LTRIM', list, 0, -1 - count) end
  for queue, messages in pairs(further) do count_out(queue, messages) end
end
local waiting = 0
for queue = 1, queues do waiting = waiting + call('EXISTS', KEYS[3 + queue]) end
return {{taken, waiting}}
""")

_PUT_BACK = f"""
-- KEYS: unacked, its index, faults, each queue's lists followed by its list of suspects, and the
-- messages of batches.
local function lists_of(tag)
  local queue = string.match(tag, '^[^/]*')
  local place = tonumber(string.match(tag, '^[^/]*/[^/]*/([0-{LISTS - 1}])$') or 0)
  for i = 4, #KEYS, {LISTS + 1} do
    if KEYS[i] == queue then return KEYS[i + place], KEYS[i + {LISTS}], queue end
  end
  -- Anyone may write any tag into the index. Nobody would read the item from the key that the tag
  -- names; in the first queue it is evaluated or becomes a dead letter.
  return KEYS[4], KEYS[4 + {LISTS}], KEYS[4]
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
    local list, suspects, queue = lists_of(tag)
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
    local more = tonumber(string.match(tag, '^[^/]*/[^/]*%.(%d+)') or 1) - 1
    if more > 0 and more < {MAX_BATCH} then
      redis.pcall('HINCRBY', KEYS[#KEYS], queue, more)
    end
  end
  redis.call('HDEL', KEYS[1], tag)
  redis.call('ZREM', KEYS[2], tag)
  return item
end
"""

PUT_BACK = Script(f"""#!lua flags=allow-oom
-- ARGV: the tag, 1 for a fault.
{_PUT_BACK}
put_back(ARGV[1], ARGV[2] == '1')
""")

RESTORE = Script(f"""#!lua flags=allow-oom
-- Puts back what workers took and neither acknowledged nor renewed: they are dead, or cut off.
-- ARGV: the visibility timeout, the most items. Returns: the number of tags that were found, and
-- those of items.
{_PUT_BACK}
{_NOW}
local old = now - ARGV[1]
local tags = redis.call('ZRANGE', KEYS[2], '-inf', old, 'BYSCORE', 'LIMIT', 0, ARGV[2])
local restored = {{}}
for _, tag in ipairs(tags) do
  if put_back(tag, true) then restored[#restored + 1] = tag end
end
return {{#tags, restored}}
""")

RECLAIM = Script(f"""#!lua flags=allow-oom
-- Puts back what a request took whose reply never came. ARGV: the beginning of its tags.
{_PUT_BACK}
for _, tag in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.find(tag, '/' .. ARGV[1] .. '-', 1, true) then put_back(tag, false) end
end
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
local function acknowledge(tags)
  if redis.call('EXISTS', KEYS[3]) == 1 then
    for _, tag in ipairs(tags) do
      local item = redis.call('HGET', KEYS[1], tag)
      if item then
        local digest = redis.sha1hex(item)
        redis.call('HDEL', KEYS[3], digest, digest .. '/at')
      end
    end
  end
  -- Lua passes at most 8,000 arguments.
  for first = 1, #tags, 1000 do
    local last = math.min(first + 999, #tags)
    redis.call('HDEL', KEYS[1], unpack(tags, first, last))
    redis.call('ZREM', KEYS[2], unpack(tags, first, last))
  end
end
"""

STORE = Script(f"""#!lua flags=allow-oom
-- Stores outcomes: the markers that they were counted, entries in the streams, the results. Then
-- it acknowledges their items, or notes those of a batch, so that another delivery of the batch
-- does not evaluate their messages again.
-- KEYS: unacked, its index, faults, markers, the caller's last attempt, agents, canaries, evidence,
-- then for each outcome the keys of its results, and that of its batch's outcomes.
-- ARGV: seconds a marker lives, token of this attempt, seconds that a batch's outcomes live, the
-- end of a result before its id, the length of the beginning of a result's key, then for each
-- outcome what `outcome_arguments` returns.
-- Returns: for each outcome 1 if it is the first of its message, 2 if that is a canary, 0 if it is
-- not the first, or why it is not stored.
{_NOW}
{_ACKNOWLEDGE}
{MARKERS}
{AGENTS}
{EVIDENCE}
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
-- The form of Celery's result backend. The key ends with the id.
local function result(key, outcome, failure)
  local status, value = 'SUCCESS', outcome
  if failure ~= '' then status, value = 'FAILURE', failure end
  local id = cjson.encode(string.sub(key, ARGV[5] + 1))
  return '{{"status":"' .. status .. '","result":' .. value .. ARGV[4] .. id .. '}}'
end
local argument, key, added = 6, 8, 0
local places, tags, replies, alive = {{}}, {{}}, {{}}, {{}}
while argument <= #ARGV do
  local place = #replies + 1
  local head, tag, outcome, failure, of_agent = unpack(ARGV, argument, argument + 4)
  local marker, position, is_noted, life, results, fields =
    string.match(head, '^(%S+) (%S+) (%d) (%d+) (%d+) (%d+)$')
  results, fields = tonumber(results), tonumber(fields)
  local set, is_first
  if marker ~= '-' then
    set = mark(marker)
    is_first = set
  else
    -- An item without a name is counted by its delivery. It may have gone to another worker.
    is_first = call('HEXISTS', KEYS[1], tag) == 1
  end
  local stored, problem = pcall(function()
    for i = key + 1, key + results do
      local text = result(KEYS[i], outcome, failure)
      call('SET', KEYS[i], text, 'PX', life)
      call('PUBLISH', KEYS[i], text)
    end
    if is_first and fields > 0 then keep(argument + 5, argument + 4 + fields) end
    if position ~= '-' then
      local parts = KEYS[key + results + 1]
      call('HSET', parts, position, is_noted == '1' and outcome or '')
      if not alive[parts] then call('EXPIRE', parts, ARGV[3]) end
      alive[parts] = true
    end
  end)
  if stored then
    if set then added = added + 1 end
    if is_first then places[#places + 1] = place end
    if tag ~= '' then tags[#tags + 1] = tag end
    local kind = {Counted.REPEATED:d}
    if is_first or is_ours(place) then kind = kind_of(of_agent) end
    if is_first and kind == {Counted.FIRST:d} then add(of_agent) end
    replies[place] = kind
  else
    -- With the marker, the next attempt would not add the entry.
    if set then call('SREM', set, marker) end
    -- Redis gives a table here, Valkey a string.
    replies[place] = type(problem) == 'table' and problem.err or problem
  end
  argument = argument + 5 + fields
  key = key + results + (position ~= '-' and 1 or 0)
end
if #places > 0 then
  noted = (noted or ARGV[2] .. ' ') .. table.concat(places, ' ') .. ' '
  call('SET', KEYS[5], noted, 'EX', ARGV[1])
end
pcall(count_agents)
pcall(count_left_out)
if added > 0 then grow(added) end
acknowledge(tags)
return replies
""")

FINISH = Script(f"""#!lua flags=allow-oom
-- Ends a batch whose outcomes are all stored: stores the list of them if somebody wants it, forgets
-- that they were parts, and acknowledges the item.
-- KEYS: unacked, its index, faults, the batch's outcomes, then the key of the list, if wanted.
-- ARGV: the tag, milliseconds the list lives, the list.
{_ACKNOWLEDGE}
if KEYS[5] then
  redis.call('SET', KEYS[5], ARGV[3], 'PX', ARGV[2])
  redis.call('PUBLISH', KEYS[5], ARGV[3])
end
redis.call('DEL', KEYS[4])
acknowledge({{ARGV[1]}})
""")

MARK = Script("""#!lua flags=allow-oom
-- KEYS: faults. ARGV: the digest of a suspect, the position that is evaluated alone from now on.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], ARGV[1] .. '/at', ARGV[2])
end
""")


def outcome_arguments(  # noqa: PLR0913 - as many as the script has
    marker: str,
    *,
    tag: str = "",
    position: int | None = None,
    outcome: str = "",
    is_noted: bool = False,
    failure: str = "",
    milliseconds: int = 1,
    results: int = 0,
    of_agent: str = "",
    record: Sequence[str | bytes | int] = (),
) -> list[str | bytes | int]:
    """Arguments of `STORE` for one outcome: few of them, since each costs as much as its bytes.

    Args:
        marker: Its marker, from `marker_of`, or nothing.
        tag: The tag of the item that ends with it, or nothing.
        position: Its position in a batch, if it is part of one.
        outcome: The outcome as JSON, which is not sent if neither results nor the batch need it.
        is_noted: Whether the batch needs the text itself, and not only that there is one.
        failure: What the results say instead (JSON) if it is a rejection.
        milliseconds: How long its results live.
        results: Their number.
        of_agent: What it adds to the figures of its agent (`worker.delivery.agents`), or nothing.
        record: The arguments of a record for a stream (`worker.delivery.evidence`), or nothing.
    """
    place = "-" if position is None else position
    head = f"{marker or '-'} {place} {is_noted:d} {milliseconds} {results} {len(record)}"
    return [head, tag, outcome if results or is_noted else "", failure, of_agent, *record]


def load_scripts(client: redis.Redis) -> None:
    """Make the scripts known to Redis that pipelines run."""
    for script in (STORE, FINISH, MARK, PUT_BACK):
        client.script_load(script.text)
