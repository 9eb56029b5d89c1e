"""Fixtures that the tests with a real Redis and real worker processes share."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

# Read when torch is loaded. OpenMP's threads wait for work in a loop, and would take the cores from
# whatever runs beside the tests, such as their own workers.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from tests.support.processor import IS_INTEL

if IS_INTEL:
    # Otherwise a row's sums depend on how many rows are multiplied with it, and an untrained
    # network multiplies the difference by a hundred at each ACT step.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

from tests.support.networks import saved_for_messages
from tests.support.processes import REAL, Worker
from tests.support.servers import server
from worker.client import Client


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A Redis of the test's own."""
    with server(tmp_path) as running:
        yield running.url


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    """A client of `redis_url`."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    """An agent's client of `redis_url`."""
    with Client(redis_url) as client:
        yield client


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a checkpoint with random weights, named `tiny`."""
    return saved_for_messages(tmp_path_factory.mktemp("checkpoints") / "tiny")


@dataclass(frozen=True)
class Site:
    """A Redis, a real worker on it, and an agent."""

    redis_url: str
    store: redis.Redis
    worker: Worker
    client: Client


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Site]:
    """One for all tests that leave it as it was: counters and streams only grow."""
    folder = tmp_path_factory.mktemp("site")
    with (
        server(folder) as running,
        redis.Redis.from_url(running.url) as store,
        Client(running.url) as client,
        Worker.start(
            REAL, folder, running.url, "--checkpoint", "tiny", checkpoint_dir=tiny_checkpoint.parent
        ) as worker,
    ):
        yield Site(running.url, store, worker.wait_until_ready(), client)
