"""worker.delivery.evidence inside a real Redis: what the streams keep, and in how many bytes."""

import uuid
from collections.abc import Iterable
from typing import Any

import pytest
import redis

from schemas import MessageRejected, RejectionReason
from tests.support.stubs import message, verdict
from worker.broker.keys import AGENTS, DEAD_LETTERS, EVIDENCE, FAILURES, NO_NAMESPACE
from worker.broker.streams import read_dead_letters, read_failures
from worker.delivery.agents import MOST_AGENTS, Counted
from worker.delivery.envelope import Refusal
from worker.delivery.evidence import ENTRY_BYTES, LEFT_OUT, MARKED, MARKS
from worker.delivery.evidence import EVIDENCE as FUNCTIONS
from worker.delivery.outcomes import Answer, Delivery, Entry
from worker.delivery.scripts import Script, load_scripts
from worker.monitor.reading import Reader
from worker.settings import Settings

HOUR, DAY = 3600, 86_400

START = 1_800_000_000
"""The beginning of an hour, in Unix seconds."""

LEAST = 4 * 1024 * 1024
"""The smallest limit of a stream, in bytes."""

SIMULATE = Script(f"""#!lua flags=allow-oom
-- Keeps failures as the storing script does, at times of its own. ARGV: when the first of all is,
-- the seconds between two, the numbers of the first and the last to keep now, the number of groups
-- that take turns, the limits, the group with a place for its number, the length of the text.
local call, floor, frexp = redis.call, math.floor, math.frexp
local now
{FUNCTIONS}
local start, pause, first, last, groups = unpack(ARGV, 1, 5)
local name = ARGV[8]
ARGV[10], ARGV[11], ARGV[12], ARGV[13] = '{FAILURES}', ARGV[6], ARGV[7], name
ARGV[15], ARGV[17], ARGV[18] = 'number', 'text', string.rep('x', ARGV[9])
for number = first, last do
  now = start + number * pause
  if tonumber(groups) > 1 then ARGV[13] = string.gsub(name, '#', number % groups) end
  ARGV[14], ARGV[16] = string.format('%.0f-*', now * 1000), tostring(number)
  keep(10, 18)
end
count_left_out()
""")

AT_ONCE = 10_000
"""Failures of a call, for which Redis needs much less than a client waits."""


def simulate(
    store: redis.Redis,
    group: str,
    *,
    start: float = START,
    seconds: float,
    rate: float,
    groups: int = 1,
    length: int = 2000,
) -> None:
    """Let `rate` messages a second fail, with the default limits.

    If several groups take turns, a number replaces the `#` in `group`.
    """
    settings, count = Settings(), round(seconds * rate)
    limits = settings.failures_maxbytes, settings.failures_per_hour
    for first in range(0, count, AT_ONCE):
        last = min(first + AT_ONCE, count) - 1
        arguments = start, 1 / rate, first, last, groups, *limits, group, length
        SIMULATE(store, [""] * 5 + [AGENTS, "", EVIDENCE], *arguments)


def kept(store: redis.Redis) -> list[tuple[float, int]]:
    """The kept failures: seconds since the start, and those left out before each."""
    entries: Any = store.xrange(FAILURES)
    return [
        (int(name.partition(b"-")[0]) / 1000 - START, int(fields.get(b"left_out", 0)))
        for name, fields in entries
    ]


def left_out(store: redis.Redis) -> int:
    return int(store.hget(EVIDENCE, LEFT_OUT) or 0)


def give_places(store: redis.Redis, *agents: str) -> None:
    store.hset(AGENTS, mapping=dict.fromkeys(agents, ""))


def test_an_hours_first_failures_are_kept_and_then_ever_fewer(store: redis.Redis) -> None:
    simulate(store, "a live true near_miss", seconds=HOUR, rate=1)
    first = [(float(second), 0) for second in range(25)]
    later = [(float(number - 1), number // 2 - 1) for number in (50, 100, 200, 400, 800, 1600)]
    # The 3200th of 3600 is the last one.
    assert kept(store) == [*first, *later, (3199.0, 1599)]
    assert left_out(store) == HOUR - 32
    simulate(store, "a live true near_miss", start=START + HOUR, seconds=9, rate=1)
    assert kept(store)[32:] == [(float(HOUR + second), 0) for second in range(9)]


def test_the_onset_of_one_agents_drift_is_there_after_a_day(store: redis.Redis) -> None:
    give_places(store, "a")
    for hour in range(24):
        start = START + hour * HOUR
        simulate(store, "a live true near_miss", start=start, seconds=HOUR, rate=10)
    times = [seconds for seconds, _ in kept(store)]
    assert times[:25] == pytest.approx([number / 10 for number in range(25)], abs=0.002)
    assert times[-1] > 23.5 * HOUR
    assert len(times) + left_out(store) == 10 * DAY
    assert (store.memory_usage(FAILURES, samples=0) or 0) < 0.1 * Settings().failures_maxbytes


def test_a_noisy_agent_does_not_evict_anothers_onset(store: redis.Redis) -> None:
    give_places(store, "quiet", "noisy")
    simulate(store, "quiet live true near_miss", seconds=3, rate=1)
    # In six patterns, with long texts.
    noise = {"seconds": HOUR, "rate": 100, "groups": 6, "length": 50_000}
    simulate(store, "noisy live true p#", start=START + 60, **noise)
    assert kept(store)[:3] == [(0.0, 0), (1.0, 0), (2.0, 0)]
    # The entries of the noisy one do not keep the quiet one's next failure out.
    simulate(store, "quiet live true near_miss", start=START + HOUR + 60, seconds=1, rate=1)
    assert kept(store)[-1] == (HOUR + 60.0, 0)


def test_a_million_hostile_agents_share_one_part(store: redis.Redis) -> None:
    give_places(store, "a")
    million = 1_000_000
    group, rate = "agent-# live true near_miss", million / HOUR
    simulate(store, group, seconds=HOUR, rate=rate, groups=million)
    hour = f"{EVIDENCE}:{START // HOUR}"
    assert store.hgetall(hour) == {b"other live true near_miss": b"1000000"}
    assert 0 < store.ttl(hour) <= 2 * HOUR
    assert store.xlen(FAILURES) == 25 + 15
    simulate(store, "a live true near_miss", start=START + HOUR - 1, seconds=1, rate=5)
    assert store.xlen(FAILURES) == 25 + 15 + 5, "an agent with a place has its own"


RULES = Delivery(
    Settings(failures_maxbytes=LEAST, dead_letters_maxbytes=LEAST, failures_per_hour=3),
    worker="w:1",
)


@pytest.fixture
def rules(store: redis.Redis) -> Delivery:
    load_scripts(store)
    return RULES


def failing(rules: Delivery, agent: str, *, live: bool = True, length: int = 0) -> Answer:
    sent = message("fail " + "x" * length).model_copy(update={"agent_id": agent})
    return rules.verdict(verdict(sent), sent, None, 0, live=live)


def refused(rules: Delivery, number: int, length: int) -> Answer:
    rejected = MessageRejected(RejectionReason.NOT_JSON, "why")
    body = b"%06d" % number + b"x" * length
    return rules.dead_letter(Refusal(body, "sqe.evaluate", str(number), None, (), rejected))


def store_all(store: redis.Redis, rules: Delivery, answers: Iterable[Answer]) -> list[int]:
    entries = [Entry(each, each.outcome.model_dump_json()) for each in answers]
    with store.pipeline(transaction=False) as pipe:
        rules.store(pipe, entries, uuid.uuid4().hex, "name")
        (replies,) = pipe.execute()
    return list(replies)


def test_the_storing_script_keeps_each_agents_and_lanes_first_failures(
    store: redis.Redis, rules: Delivery
) -> None:
    give_places(store, "a", "b")
    sent = [failing(rules, "a") for _ in range(6)]
    sent += [failing(rules, agent) for agent in ("b", "x", "y", "x", "y")]
    sent += [failing(rules, "a", live=False)]
    assert store_all(store, rules, sent) == [Counted.FIRST] * len(sent)
    found = list(read_failures(store))
    messages = [each.message.message_id for each in found]
    expected = [sent[place].outcome.message_id for place in (0, 1, 2, 5, 6, 7, 8, 9, 11)]
    assert messages == expected, "x and y have no place, and share one part"
    assert [each.left_out for each in found] == [0, 0, 0, 2, 0, 0, 0, 0, 0]
    assert left_out(store) == 3
    assert store_all(store, rules, sent) == [Counted.REPEATED] * len(sent)
    assert (store.xlen(FAILURES), left_out(store)) == (9, 3), "delivered again"


@pytest.mark.parametrize("length", [500, 60_000])
def test_a_stream_keeps_its_bytes_and_its_newest_entries(
    store: redis.Redis, rules: Delivery, length: int
) -> None:
    count = 3 * LEAST // (length + 400)
    for start in range(0, count, 100):
        numbers = range(start, min(start + 100, count))
        store_all(store, rules, (refused(rules, number, length) for number in numbers))
    kept = [int(each.body[:6]) for each in read_dead_letters(store)]
    assert kept == list(range(count - len(kept), count))
    # Redis takes less than the bytes that are counted, or hardly more.
    assert (store.memory_usage(DEAD_LETTERS, samples=0) or 0) < 1.05 * LEAST
    reading = Reader(store, NO_NAMESPACE)()
    assert reading is not None
    counted = reading.stream_bytes["dead_letters"]
    assert 0.9 * LEAST < counted <= LEAST
    entries: Any = store.xrange(DEAD_LETTERS)
    fields = sum(len(part) for _, entry in entries for pair in entry.items() for part in pair)
    assert counted == fields + ENTRY_BYTES * len(entries)
    assert store.llen(DEAD_LETTERS + MARKED) == MARKS


def fill(store: redis.Redis, rules: Delivery, times: float) -> None:
    """Add dead letters that together take so many times the limit."""
    for start in range(0, round(times * LEAST / 30_000), 50):
        store_all(store, rules, (refused(rules, start + each, 29_700) for each in range(50)))
        store.delete(*store.keys("sqe:counted*"))


def test_entries_of_an_earlier_version_go_as_well(store: redis.Redis, rules: Delivery) -> None:
    for _ in range(500):
        store.xadd(DEAD_LETTERS, {"body": "x" * 20_000})
    fill(store, rules, 1.2)
    assert (store.memory_usage(DEAD_LETTERS, samples=0) or 0) < 1.05 * LEAST


@pytest.mark.parametrize("removed", [DEAD_LETTERS, DEAD_LETTERS + MARKED, EVIDENCE])
def test_a_stream_agrees_again_after_somebody_removed_a_part_of_it(
    store: redis.Redis, rules: Delivery, removed: str
) -> None:
    fill(store, rules, 1.2)
    store.delete(removed)
    fill(store, rules, 1.2)
    used = store.memory_usage(DEAD_LETTERS, samples=0) or 0
    assert 0.9 * LEAST < used < 1.05 * LEAST


def test_a_lower_limit_is_reached_by_what_is_added(store: redis.Redis, rules: Delivery) -> None:
    settings = Settings(dead_letters_maxbytes=2 * LEAST)
    fill(store, Delivery(settings, worker="w:1"), 2)
    fill(store, rules, 1.2)
    assert (store.memory_usage(DEAD_LETTERS, samples=0) or 0) < 1.05 * LEAST


@pytest.mark.parametrize("key", [EVIDENCE, AGENTS, FAILURES + MARKED])
def test_rubbish_in_its_place_stops_no_outcome(
    store: redis.Redis, rules: Delivery, key: str
) -> None:
    store.set(key, "rubbish")
    answers = [failing(rules, "a", length=50_000) for _ in range(4)]
    assert store_all(store, rules, answers) == [Counted.FIRST] * 4
    assert store.xlen(FAILURES) >= 3


def test_the_first_hundred_agents_bound_what_an_hour_notes(
    store: redis.Redis, rules: Delivery
) -> None:
    for number in range(MOST_AGENTS + 50):
        store_all(store, rules, [failing(rules, f"agent-{number}")])
        store_all(store, rules, [failing(rules, f"agent-{number}")])
    (hour,) = store.keys(f"{EVIDENCE}:*")
    assert store.hlen(hour) == MOST_AGENTS + 1
