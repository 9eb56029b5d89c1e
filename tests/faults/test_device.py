"""A device that is lost, or never answers again: its worker ends, and nothing is lost."""

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from tests.support.processes import STUB, Worker, wait_for
from tests.support.stubs import message
from worker.broker.keys import DEAD_LETTERS, FAULTS, LIVE_QUEUE, UNACKED
from worker.client import Client
from worker.process.shutdown import BROKEN

FAULTY = (sys.executable, "-m", "tests.support.faulty_worker")


@pytest.fixture
def workers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def errors(worker: Worker) -> list[str]:
    return re.findall(r"^.* ERROR .*$", worker.log.read_text(), re.MULTILINE)


def test_a_worker_whose_engine_hangs_says_so_and_ends(
    workers: ExitStack, tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    options = {"visibility_timeout": 60, "stall_seconds": 2}
    first = workers.enter_context(Worker.start(STUB, tmp_path, redis_url, **options))
    first.wait_until_ready()
    assert first.metrics()["engine_stalled_seconds"] == 0
    repaired = tmp_path / "repaired"
    sent = [
        client.submit(message(f"hang {repaired}" if place == 3 else "solve")) for place in range(9)
    ]
    sent += client.submit_many([message(), message(), message()])
    wait_for(lambda: first.get("/readyz")[0] == 503, "not ready")
    assert "the engine has not finished a step for 1 s" in first.get("/readyz")[1]
    assert first.metrics()["engine_stalled_seconds"] >= 1
    assert first.wait() == BROKEN
    assert len(errors(first)) == 1
    assert store.hlen(UNACKED) == 0, "given back, without waiting for the visibility timeout"
    assert store.exists(FAULTS), "the hanging message may be the cause"
    repaired.touch()
    second = workers.enter_context(Worker.start(STUB, tmp_path, redis_url, **options))
    assert {each.message_id for each in client.results(sent)} == set(sent)
    assert store.xlen(DEAD_LETTERS) == 0
    assert second.total("duplicates_total") == 0


def test_sigterm_ends_a_worker_whose_engine_hangs(
    workers: ExitStack, tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    options = {"visibility_timeout": 60, "shutdown_grace_seconds": 0.2}
    worker = workers.enter_context(Worker.start(STUB, tmp_path, redis_url, **options))
    client.submit(message(f"hang {tmp_path / 'never'}"))
    client.submit(message())
    wait_for(lambda: store.hlen(UNACKED) == 2, "taken")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert errors(worker) == []
    assert (store.llen(LIVE_QUEUE), store.hlen(UNACKED)) == (2, 0)
    assert not store.exists(FAULTS), "it was told to stop"
