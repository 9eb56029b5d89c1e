"""The queues, streams, agents and memory of a deployment, as Redis has them at one moment.

One round trip, whose cost does not grow with what waits: of the lists it reads lengths and the time
of the item at the end, which is next. Reads Redis and writes nothing.
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import redis
from redis.exceptions import ResponseError

from schemas import Category
from worker.broker.backlog import MAX_TAGS, known_queue
from worker.broker.contract import ENQUEUED_AT, MAX_BATCH
from worker.broker.keys import (
    AGENTS,
    BATCHED,
    DEAD_LETTERS,
    EVIDENCE,
    FAILURES,
    QUEUES,
    UNACKED_INDEX,
    Namespace,
    messages_of,
    queue_lists,
    suspects,
)
from worker.delivery.agents import MOST_AGENTS, OTHER_AGENTS
from worker.delivery.evidence import ADDED, DROPPED, LEFT_OUT
from worker.delivery.waits import CLOCK_SKEW, LONGEST_WAIT

logger = logging.getLogger(__name__)

STREAMS = {"failures": FAILURES, "dead_letters": DEAD_LETTERS}
"""The streams by the name that the metrics give them."""

ENQUEUED = f"""
-- KEYS: lists. Returns: for each the time of enqueueing of the item that is taken next, or nothing.
local times = {{}}
for place, list in ipairs(KEYS) do
  local item = redis.call('LINDEX', list, -1)
  times[place] = item and string.match(item, '"{ENQUEUED_AT}"%s*:%s*([%d.eE+-]+)') or ''
end
return times
"""
"""The header stands before a message's text, in which quotes have backslashes."""

_FIELD = re.compile(r"([A-Za-z0-9._:-]{1,128}) (\w+) (true|false) (solved|unsolved)", re.ASCII)

_CATEGORIES = frozenset(map(str, Category))

AgentFigure = tuple[str, str, str, str]
"""Agent, category, `true` or `false` for known, and `solved` or `unsolved`."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The entries that a stream keeps."""

    entries: int = 0
    added: int = 0
    """Entries that were ever added."""
    oldest_seconds: float = 0.0
    """Age of the oldest entry; 0 without any."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The figures of one moment. A part that Redis refused is missing."""

    ready: dict[str, int] = field(default_factory=dict)
    """Messages that wait, by queue. A batch without a header is one."""
    oldest: dict[str, float] = field(default_factory=dict)
    """Seconds for which the message that is next has waited, by queue; 0 if none waits. Missing if
    its sender does not say when it was enqueued."""
    unacked: dict[str, int] = field(default_factory=dict)
    """Messages that workers have, by queue, or `OTHER` for foreign entries."""
    stalest: dict[str, float] = field(default_factory=dict)
    """Seconds since the oldest renewal of a message that a worker has, by queue; 0 without any."""
    streams: dict[str, Stream] = field(default_factory=dict)
    memory_used: int | None = None
    memory_max: int | None = None
    """0 for no limit."""
    agents: dict[AgentFigure, int] = field(default_factory=dict)
    """Live messages evaluated, each counted once."""
    stream_bytes: dict[str, int] = field(default_factory=dict)
    """Lengths of the entries' fields, by stream; for a while also of entries that an operator
    removed."""
    left_out: int | None = None
    """Failures that the stream did not keep."""


class Reader:
    """Reads a deployment's figures; calling it returns None if Redis does not answer.

    Args:
        client: A client with a short timeout.
        namespace: The beginning of all names.
    """

    def __init__(self, client: redis.Redis, namespace: Namespace) -> None:
        self._client = client
        self._namespace = namespace
        self._lists = [
            (queue, namespace.key(key))
            for queue in QUEUES
            for key in (*queue_lists(queue), suspects(queue))
        ]
        self._refused: set[str] = set()

    def __call__(self) -> Reading | None:
        """Read everything in one round trip."""
        key = self._namespace.key
        names = [name for _, name in self._lists]
        try:
            with self._client.pipeline(transaction=False) as pipe:
                pipe.time()
                pipe.info("memory")
                for name in names:
                    pipe.llen(name)
                pipe.hgetall(key(BATCHED))
                pipe.eval_ro(ENQUEUED, len(names), *names)
                pipe.zrange(key(UNACKED_INDEX), 0, MAX_TAGS - 1, withscores=True)
                pipe.hgetall(key(AGENTS))
                pipe.hgetall(key(EVIDENCE))
                for stream in STREAMS.values():
                    pipe.xinfo_stream(key(stream))
                replies = pipe.execute(raise_on_error=False)
        except redis.RedisError:
            return None
        parts = iter(replies)
        time, memory = next(parts), self._part(next(parts), "INFO")
        if isinstance(time, Exception):
            return None
        now = time[0] + time[1] / 1e6
        lengths = [self._part(next(parts), "LLEN") for _ in names]
        batched, enqueued = self._part(next(parts), "HGETALL"), self._part(next(parts), "EVAL_RO")
        tags, agents = self._part(next(parts), "ZRANGE"), self._part(next(parts), "HGETALL")
        evidence = self._part(next(parts), "HGETALL")
        unacked, stalest = self._unacked(tags, now)
        return Reading(
            self._ready(lengths, batched or {}),
            self._oldest(lengths, enqueued, now),
            unacked,
            stalest,
            {name: _stream(part, now) for name, part in zip(STREAMS, parts, strict=True)},
            memory and int(memory["used_memory"]),
            memory and int(memory["maxmemory"]),
            _agents(agents or {}),
            {} if evidence is None else self._stream_bytes(evidence),
            None if evidence is None else _integer(evidence.get(LEFT_OUT.encode())),
        )

    def _part(self, reply: Any, command: str) -> Any:  # noqa: ANN401 - any reply
        """Return a reply, or None for an error, which the log names once."""
        if not isinstance(reply, Exception):
            return reply
        if command not in self._refused:
            self._refused.add(command)
            logger.warning("Redis refuses %s: some metrics are missing (%s)", command, reply)
        return None

    def _ready(self, lengths: Sequence[int | None], batched: dict[bytes, bytes]) -> dict[str, int]:
        if None in lengths:
            return {}
        items: Counter[str] = Counter()
        for (queue, _), length in zip(self._lists, lengths, strict=True):
            items[queue] += cast("int", length)
        more = {
            self._namespace.name_of(name.decode(errors="replace")): count
            for name, count in batched.items()
        }
        return {
            # Whoever changed the lists by other means, a batch has no more than so many.
            queue: count + min(max(0, _integer(more.get(queue))), (MAX_BATCH - 1) * count)
            for queue, count in ((queue, items[queue]) for queue in QUEUES)
        }

    def _oldest(
        self, lengths: Sequence[int | None], enqueued: Sequence[bytes] | None, now: float
    ) -> dict[str, float]:
        if enqueued is None:
            return {}
        found = dict.fromkeys(QUEUES, 0.0)
        unknown = set()
        for (queue, _), length, text in zip(self._lists, lengths, enqueued, strict=True):
            if not length:
                continue
            age = _age(text, now)
            if age is None:
                unknown.add(queue)
            else:
                found[queue] = max(found[queue], age)
        return {queue: age for queue, age in found.items() if age or queue not in unknown}

    def _unacked(
        self, tags: Sequence[tuple[bytes, float]] | None, now: float
    ) -> tuple[dict[str, int], dict[str, float]]:
        if tags is None:
            return {}, {}
        messages = dict.fromkeys(QUEUES, 0)
        stalest = dict.fromkeys(QUEUES, 0.0)
        for tag, renewed in tags:
            queue = known_queue(tag, self._namespace)
            count = messages_of(self._namespace.name_of(tag.decode(errors="replace")))
            messages[queue] = messages.get(queue, 0) + count
            stalest[queue] = max(stalest.get(queue, 0.0), now - renewed)
        return messages, stalest

    def _stream_bytes(self, evidence: dict[bytes, bytes]) -> dict[str, int]:
        def read(stream: str, end: str) -> int:
            return _integer(evidence.get((self._namespace.key(stream) + end).encode()))

        return {
            name: max(0, read(stream, ADDED) - read(stream, DROPPED))
            for name, stream in STREAMS.items()
        }


def _age(text: bytes, now: float) -> float | None:
    """Seconds since the time in `text`; None if it is no plausible time."""
    try:
        age = now - float(text)
    except ValueError:
        return None
    return max(0.0, age) if -CLOCK_SKEW <= age <= LONGEST_WAIT else None


def _stream(info: Any, now: float) -> Stream:  # noqa: ANN401 - any reply
    if isinstance(info, ResponseError) or not info["length"]:  # there is no such key yet
        added = 0 if isinstance(info, ResponseError) else int(info["entries-added"])
        return Stream(added=added)
    milliseconds = int(info["first-entry"][0].partition(b"-")[0])
    age = max(0.0, now - milliseconds / 1000)
    return Stream(int(info["length"]), int(info["entries-added"]), age)


def _agents(fields: dict[bytes, bytes]) -> dict[AgentFigure, int]:
    """Read the figures of the agents. Anyone may write to Redis, and they become label values."""
    found: dict[AgentFigure, int] = {}
    agents: set[str] = set()
    for name, count in sorted(fields.items()):
        match = _FIELD.fullmatch(name.decode(errors="replace"))
        if match is None or match[2] not in _CATEGORIES:
            continue
        agent = match[1]
        if agent not in agents and len(agents - {OTHER_AGENTS}) >= MOST_AGENTS:
            agent = OTHER_AGENTS
        agents.add(agent)
        figure = (agent, match[2], match[3], match[4])
        found[figure] = found.get(figure, 0) + max(0, _integer(count))
    return found


def _integer(text: bytes | None) -> int:
    """Read a number that Redis counted; 0 for anything else."""
    return int(text) if text is not None and re.fullmatch(rb"-?[0-9]{1,19}", text) else 0
