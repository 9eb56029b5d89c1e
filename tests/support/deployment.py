"""A whole deployment: Redis, two workers at one address, the monitor, and Prometheus."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.agents import Agents
from tests.support.processes import REAL, Worker
from tests.support.prometheus import Prometheus, prometheus
from tests.support.servers import server
from worker.client import Client

MONITOR = (sys.executable, "-m", "worker", "monitor")

JOBS = ("monitoring/workers", "monitoring/monitor")
"""Names of scrape jobs as a PodMonitor gives them, which nothing may rely on."""


@dataclass(frozen=True)
class Deployment:
    """The parts that run."""

    redis_url: str
    workers: Worker
    monitor: Worker
    prometheus: Prometheus
    agents: Agents


@contextlib.contextmanager
def deployment(
    folder: Path, *, scrape_seconds: float, canary_seconds: float, **settings: object
) -> Iterator[Deployment]:
    """Run everything with the checkpoint `sqe-demo`, on the CPU.

    Args:
        folder: Folder for logs and data.
        scrape_seconds: Seconds between two scrapes, and between two evaluations of the rules.
        canary_seconds: Seconds between two canaries.
        settings: Further settings of the workers.
    """
    checkpoint = ("--checkpoint", "sqe-demo")
    with (
        server(folder, "--maxmemory", "1gb") as store,
        Worker.start(
            REAL, folder, store.url, *checkpoint, "--devices", "cpux2", **settings
        ) as workers,
        Worker.start(
            MONITOR, folder, store.url, *checkpoint, canary_seconds=canary_seconds
        ) as monitor,
        Client(store.url) as client,
    ):
        addresses = [[each.url.removeprefix("http://")] for each in (workers, monitor)]
        jobs = dict(zip(JOBS, addresses, strict=True))
        with prometheus(folder, jobs, seconds=scrape_seconds) as watching:
            workers.wait_until_ready()
            yield Deployment(store.url, workers, monitor, watching, Agents(client))
