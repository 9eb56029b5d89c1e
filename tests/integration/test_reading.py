"""worker.monitor.reading on a real Redis: what waits, since when, and what agents did."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.servers import server
from tests.support.stubs import message
from worker.broker.app import EVALUATE, EVALUATE_BATCH
from worker.broker.keys import (
    AGENTS,
    BACKFILL_QUEUE,
    BATCHED,
    DEAD_LETTERS,
    EVIDENCE,
    FAILURES,
    LIVE_QUEUE,
    QUEUES,
    UNACKED_INDEX,
    Namespace,
    delivery_tag,
    queue_lists,
    suspects,
)
from worker.client import Client
from worker.delivery.agents import MOST_AGENTS
from worker.monitor.reading import Reader, Reading, Stream


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("redis")
    with server(folder) as running:
        yield running.url


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        yield client


def read(store: redis.Redis, namespace: str = "") -> Reading:
    reading = Reader(store, Namespace(namespace))()
    assert reading is not None
    return reading


def item(enqueued_at: object, **headers: object) -> str:
    return json.dumps({"headers": {"task": EVALUATE, "sqe_enqueued_at": enqueued_at, **headers}})


def test_an_empty_redis_has_zeros(store: redis.Redis) -> None:
    reading = read(store)
    zeros = dict.fromkeys(QUEUES, 0)
    assert (reading.ready, reading.unacked, reading.oldest, reading.stalest) == (zeros,) * 4
    assert reading.streams == {"failures": Stream(), "dead_letters": Stream()}
    assert reading.stream_bytes == {"failures": 0, "dead_letters": 0}
    assert reading.left_out == 0
    assert reading.agents == {}
    assert reading.memory_used
    assert reading.memory_max == 0


@pytest.mark.parametrize("namespace", ["", "staging"])
def test_a_batch_counts_its_messages(store: redis.Redis, redis_url: str, namespace: str) -> None:
    with Client(redis_url, namespace) as client:
        client.submit_many([message() for _ in range(300)], queue=BACKFILL_QUEUE)
        client.submit(message())
    reading = read(store, namespace)
    assert reading.ready == {LIVE_QUEUE: 1, BACKFILL_QUEUE: 300}
    assert all(0 <= age < 60 for age in reading.oldest.values())
    assert read(store, "other").ready == {LIVE_QUEUE: 0, BACKFILL_QUEUE: 0}


def test_every_list_of_a_queue_counts(store: redis.Redis) -> None:
    for name in (*queue_lists(LIVE_QUEUE), suspects(LIVE_QUEUE)):
        store.lpush(name, item(time.time()))
    assert read(store).ready[LIVE_QUEUE] == 5


@pytest.mark.parametrize("more", [-7, 10**6, "rubbish", "9" * 40])
def test_a_wrong_number_of_batched_messages_stays_in_bounds(
    store: redis.Redis, more: object
) -> None:
    store.hset(BATCHED, LIVE_QUEUE, str(more))
    assert read(store).ready[LIVE_QUEUE] == 0, "nothing waits"
    store.lpush(LIVE_QUEUE, item(0), item(0))
    assert 2 <= read(store).ready[LIVE_QUEUE] <= 2 * 256


def test_the_age_is_that_of_the_message_that_is_next_in_any_list(store: redis.Redis) -> None:
    now = time.time()
    store.lpush(LIVE_QUEUE, item(now - 20), item(now - 10), item(now))
    store.lpush(suspects(LIVE_QUEUE), item(now - 500))
    store.lpush(BACKFILL_QUEUE, item(now - 100))
    oldest = read(store).oldest
    assert oldest[LIVE_QUEUE] == pytest.approx(500, abs=5)
    assert oldest[BACKFILL_QUEUE] == pytest.approx(100, abs=5)
    store.delete(suspects(LIVE_QUEUE))
    assert read(store).oldest[LIVE_QUEUE] == pytest.approx(20, abs=5)


@pytest.mark.parametrize("at", [None, "yesterday", 0, 1e999, -5, True, [1], 1e12, "1e1e1"])
def test_a_sender_without_a_plausible_time_leaves_no_age_but_counts(
    store: redis.Redis, at: object
) -> None:
    store.lpush(LIVE_QUEUE, item(at))
    reading = read(store)
    assert reading.ready[LIVE_QUEUE] == 1
    assert LIVE_QUEUE not in reading.oldest
    assert reading.oldest[BACKFILL_QUEUE] == 0


def test_a_time_in_a_message_is_not_its_age(store: redis.Redis, redis_url: str) -> None:
    with Client(redis_url) as client:
        client.submit(message(f'"sqe_enqueued_at": {time.time() - 900}'))
    assert read(store).oldest[LIVE_QUEUE] < 60


def test_what_workers_have_counts_in_messages_with_its_stalest_renewal(store: redis.Redis) -> None:
    now = time.time()
    tags = {
        delivery_tag(LIVE_QUEUE, "a-0"): now,
        delivery_tag(LIVE_QUEUE, "a-1", 2): now - 70,
        delivery_tag(BACKFILL_QUEUE, "a-2.256"): now - 30,
        delivery_tag(BACKFILL_QUEUE, "b-0.7", 1): now,
        "foreign": now,
        "sqe.evaluate2/x.9999": now,
    }
    store.zadd(UNACKED_INDEX, tags)
    reading = read(store)
    assert reading.unacked == {LIVE_QUEUE: 2, BACKFILL_QUEUE: 263, "other": 2}
    assert reading.stalest[LIVE_QUEUE] == pytest.approx(70, abs=5)
    assert reading.stalest[BACKFILL_QUEUE] == pytest.approx(30, abs=5)


def test_a_stream_says_how_far_it_reaches_back(store: redis.Redis) -> None:
    hour_ago = int((time.time() - 3600) * 1000)
    store.xadd(FAILURES, {"a": "1"}, id=f"{hour_ago}-0")
    store.xadd(FAILURES, {"a": "2"})
    store.xadd(DEAD_LETTERS, {"a": "3"})
    store.xtrim(DEAD_LETTERS, maxlen=0)
    streams = read(store).streams
    assert (streams["failures"].entries, streams["failures"].added) == (2, 2)
    assert streams["failures"].oldest_seconds == pytest.approx(3600, abs=5)
    assert streams["dead_letters"] == Stream(entries=0, added=1)


@pytest.mark.parametrize("namespace", ["", "staging"])
def test_a_streams_bytes_are_those_added_without_those_dropped(
    store: redis.Redis, namespace: str
) -> None:
    key = Namespace(namespace).key
    fields: dict[Any, Any] = {
        key(FAILURES) + " added": 900,
        key(FAILURES) + " dropped": 400,
        key(DEAD_LETTERS) + " added": 7,
        key(DEAD_LETTERS) + " dropped": "rubbish",
        "left_out": 13,
    }
    store.hset(key(EVIDENCE), mapping=fields)
    reading = read(store, namespace)
    assert reading.stream_bytes == {"failures": 500, "dead_letters": 7}
    assert reading.left_out == 13


def test_agents_are_read_and_rubbish_is_not(store: redis.Redis) -> None:
    fields: dict[Any, Any] = {
        "a other true solved": 3,
        "a ci_cd false unsolved": 2,
        "a": "",
        "#": 1,
        "b other true solved": "-5",
        "a nonsense true solved": 9,
        "a other maybe solved": 9,
        "a b other true solved": 9,
        "x\n other true solved": 9,
    }
    store.hset(AGENTS, mapping=fields)
    store.hset(AGENTS, b"\xff other true solved", 9)
    assert read(store).agents == {
        ("a", "other", "true", "solved"): 3,
        ("a", "ci_cd", "false", "unsolved"): 2,
        ("b", "other", "true", "solved"): 0,
    }


def test_any_number_of_agents_makes_a_bounded_number_of_figures(store: redis.Redis) -> None:
    fields: dict[Any, Any] = {f"agent-{number} other true solved": 1 for number in range(1000)}
    store.hset(AGENTS, mapping=fields)
    agents = read(store).agents
    assert len(agents) == MOST_AGENTS + 1
    assert agents["other", "other", "true", "solved"] == 1000 - MOST_AGENTS


def test_what_redis_refuses_is_missing_and_the_rest_is_there(store: redis.Redis) -> None:
    store.set(AGENTS, "rubbish")
    store.set(FAILURES, "rubbish")
    store.lpush(LIVE_QUEUE, item(0))
    reading = read(store)
    assert reading.ready[LIVE_QUEUE] == 1
    assert reading.agents == {}
    assert reading.streams["failures"] == Stream()


def test_a_million_waiting_messages_are_counted_in_one_short_round_trip(
    store: redis.Redis,
) -> None:
    """No list is read through: the server's own account has no command that grows with it."""
    for _ in range(4):
        store.lpush(BACKFILL_QUEUE, *[item(0, task=EVALUATE_BATCH, sqe_messages=256)] * 1000)
    store.hset(BATCHED, BACKFILL_QUEUE, 4000 * 255)
    store.config_resetstat()
    assert read(store).ready[BACKFILL_QUEUE] == 4000 * 256
    commands = {name for name in store.info("commandstats") if name != "cmdstat_config|resetstat"}
    allowed = {"time", "info", "llen", "hgetall", "eval_ro", "lindex", "zrange", "xinfo|stream"}
    assert commands <= {f"cmdstat_{name}" for name in allowed} | {"cmdstat_client|setinfo"}
