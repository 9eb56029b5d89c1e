"""How workers start, stop and go on: what the ledgers of `test_scenarios.py` do not show."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from tests.support.processes import STUB, Worker, wait_for
from tests.support.stubs import message
from worker.broker import embedded
from worker.broker.keys import LIVE_QUEUE, UNACKED, queue_lists
from worker.client import BACKFILL_QUEUE, Client
from worker.process.shutdown import BROKEN

SHORT = 1.0
"""The shortest visibility timeout, so that a dead worker's messages move on soon."""


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that does not exist yet; messages `hold` until it does."""
    return tmp_path / "gate"


@pytest.fixture
def workers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def in_hand(store: redis.Redis) -> int:
    return store.hlen(UNACKED)


def test_a_worker_waits_for_a_redis_that_comes_later(workers: ExitStack, tmp_path: Path) -> None:
    with embedded.start(tmp_path) as server:
        url = server.url
    worker = workers.enter_context(Worker.start(STUB, tmp_path, url))
    wait_for(lambda: "Redis is not reachable" in worker.log.read_text(), "a first attempt")
    with embedded.start(tmp_path), Client(url) as client:
        assert client.result(client.submit(message())).solved


def test_sigterm_finishes_what_is_under_way_and_exits_0(
    workers: ExitStack, tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    gate = tmp_path / "gate"
    worker = workers.enter_context(Worker.start(STUB, tmp_path, redis_url)).wait_until_ready()
    message_id = client.submit(message(f"hold {gate}"))
    wait_for(lambda: in_hand(store) == 1, "taken")
    worker.signal(signal.SIGTERM)
    wait_for(lambda: worker.get("/readyz") == (503, "shutting down\n"), "not ready")
    worker.signal(signal.SIGTERM)  # a second one changes nothing
    wait_for(lambda: worker.log.read_text().count("SIGTERM") == 1, "one line in the log")
    late = client.submit(message())
    gate.touch()
    assert worker.wait() == 0
    assert client.result(message_id, timeout=1).solved
    assert (store.llen(LIVE_QUEUE), in_hand(store)) == (1, 0), "the late one is for others"
    assert late in str(store.lindex(LIVE_QUEUE, 0))


def test_a_drain_gives_each_item_back_to_its_priority_and_in_its_order(
    workers: ExitStack, tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    start = Worker.start(STUB, tmp_path, redis_url, shutdown_grace_seconds=0.3)
    worker = workers.enter_context(start).wait_until_ready()
    lists = queue_lists(LIVE_QUEUE)
    worker.signal(signal.SIGSTOP)
    for _ in range(8):
        client.submit(message(f"hold {tmp_path / 'never'}"))
    for key in 2 * lists[1:]:
        store.lmove(LIVE_QUEUE, key, "LEFT", "RIGHT")
    before = {key: store.lrange(key, 0, -1) for key in lists}
    worker.signal(signal.SIGCONT)
    wait_for(lambda: in_hand(store) == 8, "taken")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert {key: store.lrange(key, 0, -1) for key in lists} == before
    log = worker.log.read_text()
    assert "of 8 items in hand, 8 were given back" in log
    assert " ERROR " not in log


def test_under_load_many_messages_share_a_round_trip(
    workers: ExitStack, tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    start = Worker.start(STUB, tmp_path, redis_url, "--slots", "64")
    worker = workers.enter_context(start).wait_until_ready()
    client.result(client.submit(message()))
    worker.signal(signal.SIGSTOP)
    sent = [client.submit(message()) for _ in range(640)]
    before = store.info("commandstats")["cmdstat_evalsha"]["calls"]
    worker.signal(signal.SIGCONT)
    assert len(list(client.results(sent))) == 640
    wait_for(lambda: in_hand(store) == 0, "acknowledged")
    assert store.info("commandstats")["cmdstat_evalsha"]["calls"] - before < 640 / 2


def test_more_slots_than_redis_py_has_connections_store_their_outcomes_at_once(
    workers: ExitStack, tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    gate = tmp_path / "gate"
    start = Worker.start(STUB, tmp_path, redis_url, "--slots", "300")
    worker = workers.enter_context(start).wait_until_ready()
    sent = [client.submit(message(f"hold {gate}")) for _ in range(300)]
    wait_for(lambda: in_hand(store) == 300, "taken")
    gate.touch()
    assert len(list(client.results(sent))) == 300
    assert worker.total("errors_total") == 0


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_batch_that_goes_to_another_worker_keeps_the_outcomes_it_has(
    workers: ExitStack,
    tmp_path: Path,
    redis_url: str,
    client: Client,
    gate: Path,
    end: signal.Signals,
) -> None:
    options = {"visibility_timeout": SHORT, "shutdown_grace_seconds": 0.3}
    first = workers.enter_context(Worker.start(STUB, tmp_path, redis_url, **options))
    # Four batches, each with one message that takes long.
    sent = client.submit_many(
        message("solve" if place % 256 else f"hold {gate}") for place in range(1024)
    )
    wait_for(lambda: first.total("evaluations_total") == 1020, "evaluated")
    assert len(client.poll(sent)) == 1020
    first.signal(end)
    assert first.wait() == (-end if end is signal.SIGKILL else 0)
    assert " ERROR " not in first.log.read_text()
    gate.touch()
    second = workers.enter_context(Worker.start(STUB, tmp_path, redis_url, **options))
    assert len(list(client.results(sent))) == 1024
    with redis.Redis.from_url(redis_url) as store:
        wait_for(lambda: in_hand(store) == 0, "acknowledged")
        assert list(store.scan_iter("sqe:partial:*")) == []
    assert second.total("evaluations_total") == 4
    assert second.total("duplicates_total") == 0


def test_sigterm_while_redis_is_gone_ends_the_worker(workers: ExitStack, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with embedded.start(tmp_path) as server, Client(server.url) as client:
        start = Worker.start(STUB, tmp_path, server.url, shutdown_grace_seconds=0.3)
        worker = workers.enter_context(start).wait_until_ready()
        client.submit(message(f"hold {gate}"))
        with redis.Redis.from_url(server.url) as store:
            wait_for(lambda: in_hand(store) == 1, "taken")
    gate.touch()
    wait_for(
        lambda: "cannot store outcomes" in worker.log.read_text(), "an outcome without a Redis"
    )
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    with (
        embedded.start(tmp_path) as server,
        redis.Redis.from_url(server.url) as store,
    ):
        assert store.llen(LIVE_QUEUE) + in_hand(store) == 1, "not lost"


def test_a_worker_that_meets_only_errors_gives_its_messages_back_and_exits(
    workers: ExitStack, tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    worker = workers.enter_context(
        Worker.start(STUB, tmp_path, redis_url, "--slots", "1")
    ).wait_until_ready()
    # With few in the queue, it would come to the same again, which would be suspects then.
    worker.signal(signal.SIGSTOP)
    for _ in range(30):
        client.submit(message("bug in here"))
    worker.signal(signal.SIGCONT)
    assert worker.wait() == BROKEN
    assert (store.llen(LIVE_QUEUE), in_hand(store)) == (30, 0)
    assert "bug in here" not in worker.log.read_text()


def test_a_live_message_does_not_wait_beside_a_full_backfill(
    workers: ExitStack, tmp_path: Path, redis_url: str, client: Client, gate: Path
) -> None:
    start = Worker.start(STUB, tmp_path, redis_url, "--slots", "1")
    workers.enter_context(start).wait_until_ready()
    held = (message(f"hold {gate}") for _ in range(600))
    backlog = client.submit_many(held, queue=BACKFILL_QUEUE)
    with redis.Redis.from_url(redis_url) as store:
        wait_for(lambda: in_hand(store) == 1, "a batch is in hand, and no more")
        for _ in range(20):
            assert client.result(client.submit(message())).solved
        assert in_hand(store) == 1
    gate.touch()
    assert len(list(client.results(backlog))) == 600


def test_idle_workers_share_the_batches_of_a_file(
    workers: ExitStack, tmp_path: Path, redis_url: str, client: Client, gate: Path
) -> None:
    both = [workers.enter_context(Worker.start(STUB, tmp_path, redis_url)) for _ in range(2)]
    for worker in both:
        worker.wait_until_ready()
    held = (message(f"hold {gate}") for _ in range(4 * 256))
    sent = client.submit_many(held, queue=BACKFILL_QUEUE)
    with redis.Redis.from_url(redis_url) as store:
        wait_for(lambda: in_hand(store) == 2, "each has a batch")
        gate.touch()
        assert len(list(client.results(sent))) == 1024
        wait_for(lambda: in_hand(store) == 0, "acknowledged")
    assert sum(worker.total("evaluations_total") for worker in both) == 1024
    assert min(worker.total("evaluations_total") for worker in both) >= 256


def test_a_lost_connection_of_the_consumer_gives_nothing_back(
    workers: ExitStack, tmp_path: Path, redis_url: str, client: Client, gate: Path
) -> None:
    worker = workers.enter_context(Worker.start(STUB, tmp_path, redis_url)).wait_until_ready()
    batch = (message(f"hold {gate}" if place else "solve") for place in range(192))
    sent = client.submit_many(batch, queue=BACKFILL_QUEUE)
    sent += [client.submit(message(f"hold {gate}")) for _ in range(7)]
    with redis.Redis.from_url(redis_url) as store:
        wait_for(lambda: in_hand(store) == 8, "taken")
        tags = sorted(store.hkeys(UNACKED))
        connections = store.info("stats")["total_connections_received"]
        for _ in range(3):
            store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            wait_for(
                lambda: store.info("stats")["total_connections_received"] > connections, "again"
            )
            worker.wait_until_ready()
        assert client.result(client.submit(message())).solved, "it takes messages again"
        assert sorted(store.hkeys(UNACKED)) == tags
        gate.touch()
        assert len(list(client.results(sent))) == 199
        wait_for(lambda: in_hand(store) == 0, "acknowledged")
    wait_for(lambda: worker.total("evaluations_total") == 200, "each counted once")
    assert worker.total("duplicates_total") == 0
