"""A worker of which a thread ends with an error: it ends, and another takes its messages over."""

import sys
from pathlib import Path

import pytest

from tests.support.processes import STUB, Worker
from tests.support.stubs import message
from worker.broker.keys import BACKFILL_QUEUE
from worker.client import Client
from worker.process.shutdown import BROKEN

METHODS = (
    "worker.delivery.service.Service._next",
    "worker.delivery.storing.Storing._build",
    "worker.delivery.upkeep.Upkeep._renew",
)
"""A method of each thread, which raises an error as soon as the file `fault` exists."""

WORKER = """
import pkgutil, runpy, sys
from pathlib import Path

owner, _, name = sys.argv.pop(1).rpartition(".")
owner = pkgutil.resolve_name(owner)
method = getattr(owner, name)

def fail(self, *arguments):
    if Path("fault").exists():
        raise KeyError("a text")
    return method(self, *arguments)

setattr(owner, name, fail)
runpy.run_module("tests.support.stub_worker", run_name="__main__")
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_ends_with_each_of_its_threads(
    method: str, tmp_path: Path, redis_url: str, client: Client
) -> None:
    command = (sys.executable, "-c", WORKER, method)
    with Worker.start(command, tmp_path, redis_url, visibility_timeout=1) as worker:
        worker.wait_until_ready()
        (tmp_path / "fault").touch()
        sent = client.submit_many([message() for _ in range(20)], queue=BACKFILL_QUEUE)
        sent += [client.submit(message()) for _ in range(20)]
        assert worker.wait() == BROKEN
        log = worker.log.read_text()
        assert "ended with an unexpected KeyError" in log
        assert "a text" not in log
    with Worker.start(STUB, tmp_path, redis_url, visibility_timeout=1):
        assert {each.message_id for each in client.results(sent)} == set(sent)
