"""A device that is lost, or never answers again: its worker ends, and nothing is lost."""

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from tests.support.processes import REAL, Worker, wait_for
from tests.support.stubs import message
from worker.broker.keys import DEAD_LETTERS, UNACKED
from worker.client import Client

FAULTY = (sys.executable, "-m", "tests.support.faulty_worker")


@pytest.fixture
def workers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def errors(worker: Worker) -> list[str]:
    return re.findall(r"^.* ERROR .*$", worker.log.read_text(), re.MULTILINE)


def test_a_worker_that_loses_its_device_gives_sound_messages_back_and_ends(
    workers: ExitStack,
    tmp_path: Path,
    redis_url: str,
    client: Client,
    store: redis.Redis,
    tiny_checkpoint: Path,
) -> None:
    options = {"checkpoint_dir": tiny_checkpoint.parent, "visibility_timeout": 60}
    start = Worker.start(FAULTY, tmp_path, redis_url, "--checkpoint", "tiny", **options)
    first = workers.enter_context(start).wait_until_ready()
    known = [message(f"known {place}") for place in range(30)]
    assert len(list(client.results([client.submit(each) for each in known]))) == 30
    (tmp_path / "fault").write_text("lost")
    # Every second message is in the cache, which still answers.
    sent = [
        client.submit(message(f"new {place}" if place % 2 else f"known {place % 30}"))
        for place in range(60)
    ]
    assert first.wait() == 1
    (line,) = errors(first)
    assert "this worker cannot go on: the device failed: CUDA error: an illegal memory" in line
    assert store.hlen(UNACKED) == 0, "given back, without waiting for the visibility timeout"
    (tmp_path / "fault").unlink()
    start = Worker.start(REAL, tmp_path, redis_url, "--checkpoint", "tiny", **options)
    second = workers.enter_context(start)
    assert {each.message_id for each in client.results(sent)} == set(sent)
    assert store.xlen(DEAD_LETTERS) == 0
    wait_for(lambda: not store.exists(UNACKED), "acknowledged")
    assert second.total("rejected_total") == second.total("duplicates_total") == 0
