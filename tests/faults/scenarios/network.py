"""Connections to Redis that are refused, cut or slow, by a proxy between."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.ledger import Row
from tests.faults.scenarios.size import Size
from tests.faults.scene import Scene
from tests.support.processes import wait_for
from tests.support.servers import Proxy, server

BETWEEN_CUTS = 0.5
"""Seconds between two cuts: time to make connections and to take messages."""

DELAY = 0.25
"""Seconds for which everything is on its way to Redis, and back."""


@contextlib.contextmanager
def scene(folder: Path) -> Iterator[tuple[Proxy, Scene]]:
    """A Redis that everybody reaches through a proxy."""
    with (
        server(folder) as redis_server,
        Proxy(redis_server.port).running() as proxy,
        Scene(folder, f"redis://127.0.0.1:{proxy.port}/0") as made,
    ):
        yield proxy, made


def refused(folder: Path, size: Size) -> Row:
    """Every connection is reset, and new ones are refused."""
    with scene(folder) as (proxy, at):
        worker = at.start().wait_until_ready()
        with at.traffic(seconds=0.02):
            for _ in range(size.repetitions):
                at.send(size.messages, seconds=0.05)
                at.wait_in_hand()
                with proxy.refusing():
                    wait_for(lambda: worker.get("/readyz")[0] == 503, "not ready")
                    time.sleep(size.seconds)
                at.consumes_again()
                wait_for(worker.is_ready, "ready again")
        return at.close(size.repetitions)


def cut(folder: Path, size: Size) -> Row:
    """Every connection is reset; new ones work at once."""
    with scene(folder) as (proxy, at):
        at.start().wait_until_ready()
        with at.traffic(seconds=0.02):
            for _ in range(size.repetitions):
                at.send(size.messages, seconds=0.05)
                at.wait_in_hand()
                proxy.cut()
                at.consumes_again()
                time.sleep(BETWEEN_CUTS)
        return at.close(size.repetitions)


def delayed(folder: Path, size: Size) -> Row:
    """Every request and every reply takes long."""
    with scene(folder) as (proxy, at):
        at.start().wait_until_ready()
        with at.traffic(seconds=0.02):
            for _ in range(size.repetitions):
                at.send(size.messages, seconds=0.02)
                proxy.delay = DELAY
                time.sleep(size.seconds)
                proxy.delay = 0.0
                at.consumes_again()
        return at.close(size.repetitions)
