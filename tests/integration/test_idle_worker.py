"""An idle worker: Redis tells it about a message, and nothing is written or sent meanwhile."""

import contextlib
import os
import signal
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
import redis

from schemas import Verdict
from tests.support.channels import ask, bare_channel
from tests.support.permissions import limited_url
from tests.support.processes import DEADLINE, STUB, Worker, wait_for
from tests.support.stubs import message
from worker.broker.keys import UNACKED
from worker.broker.urls import connections
from worker.client import BACKFILL_QUEUE, LIVE_QUEUE, Client
from worker.delivery.hand import Hand
from worker.delivery.transport import WAIT_SECONDS


@pytest.fixture
def worker(tmp_path: Path, redis_url: str) -> Iterator[Worker]:
    with Worker.start(STUB, tmp_path, redis_url) as worker:
        yield worker.wait_until_ready()


def calls(store: redis.Redis) -> dict[str, int]:
    statistics: dict[str, Any] = store.info("commandstats")
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in statistics.items()}


def wait_in_queue(client: Client, queue: str) -> float:
    sent = message()
    client.submit(sent, queue=queue)
    verdict = client.result(sent.message_id)
    assert isinstance(verdict, Verdict)
    assert verdict.timings.queue is not None
    return verdict.timings.queue


@pytest.mark.parametrize("queue", [LIVE_QUEUE, BACKFILL_QUEUE])
def test_an_idle_worker_is_told_about_a_message_of_either_queue(
    worker: Worker, client: Client, queue: str
) -> None:
    assert worker.is_ready()
    waits = [wait_in_queue(client, queue) for _ in range(9)]
    assert statistics.median(waits) < WAIT_SECONDS / 5


def test_an_announcement_right_behind_the_reply_is_heard(
    worker: Worker, client: Client, store: redis.Redis
) -> None:
    """Redis can send both at once, and then nothing is left to read."""
    client.result(client.submit(message()))
    server = int(store.info("server")["process_id"])
    waits = []
    with ThreadPoolExecutor() as pool:
        for number in range(8):
            os.kill(server, signal.SIGSTOP)
            time.sleep((1.2 + number / 8) * WAIT_SECONDS)  # the worker asks again
            sent = pool.submit(client.submit, message())
            time.sleep(WAIT_SECONDS / 5)  # Redis has to find both requests
            start = time.monotonic()
            os.kill(server, signal.SIGCONT)
            client.result(sent.result())
            waits.append(time.monotonic() - start)
    assert worker.is_ready()
    # If it were not heard, they would be spread evenly over the time between two looks.
    assert statistics.median(waits) < WAIT_SECONDS / 5


@pytest.mark.usefixtures("worker")
def test_an_idle_worker_writes_nothing(client: Client, store: redis.Redis) -> None:
    client.result(client.submit(message()))
    wait_for(lambda: not store.exists(UNACKED), "acknowledged")
    changes = store.info("persistence")["rdb_changes_since_last_save"]
    before = calls(store)
    time.sleep(3 * WAIT_SECONDS)
    after = calls(store)
    assert after["evalsha"] > before["evalsha"], "it looks into the queues"
    assert store.info("persistence")["rdb_changes_since_last_save"] == changes
    assert not {name for name in after if name.startswith("bl")}


def test_a_redis_that_announces_nothing_is_asked(
    tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    limited = limited_url(store, redis_url, "-client|tracking", "-client|caching")
    with Worker.start(STUB, tmp_path, limited) as worker:
        worker.wait_until_ready()
        for _ in range(3):
            assert wait_in_queue(client, LIVE_QUEUE) < 30
        assert worker.is_ready()


def test_a_full_worker_gets_no_announcement(
    tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    """A connection that can be read while nothing is requested is taken for a closed one."""
    with Worker.start(STUB, tmp_path, redis_url, "--slots", "1") as worker:
        worker.wait_until_ready()
        client.result(client.submit(message()))
        connections = store.info("stats")["total_connections_received"]
        for number in range(20):
            wait_for(lambda: not store.exists(UNACKED), "idle")
            gate = tmp_path / str(number)
            held = client.submit(message(f"hold {gate}"))
            wait_for(lambda: store.hlen(UNACKED) == 1, "full")
            other = client.submit_many([message()], queue=BACKFILL_QUEUE)
            gate.touch()
            assert len(list(client.results([held, *other]))) == 2
        assert store.info("stats")["total_connections_received"] - connections < 20


def test_an_announcement_to_a_full_worker_is_read_and_not_taken_for_a_reply(
    client: Client, redis_url: str
) -> None:
    hand, tags = Hand(slots=1), list[str]()
    connection = connections(redis_url, protocol=3).get_connection()
    channel = bare_channel(
        connection, hand, lambda items: tags.extend(each.tag for each in items), 1 << 20
    )

    def read() -> None:
        assert connection.can_read(timeout=DEADLINE)
        with contextlib.suppress(Empty):
            channel._brpop_read()

    for _ in range(2):  # the second reply has nothing, too: it waits
        ask(channel)
        read()
    for _ in range(2):
        client.submit(message())
    channel.look_again()  # the time is over before it reads the announcement
    ask(channel)
    read()
    assert len(tags) == 2
    client.submit(message(), queue=BACKFILL_QUEUE)
    ask(channel)
    assert channel._in_poll, "it would close the connection"
    hand.remove(tags[0])
    read()
    ask(channel)
    read()
    assert len(tags) == 3
    channel.beat()
    assert channel.is_beat_due, "a full worker shows that it reaches Redis"
