"""Workers that are killed, stopped, frozen or cut off, and their clocks."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.ledger import Row
from tests.faults.scenarios.size import Size
from tests.faults.scene import SHORT, Scene
from tests.support import loopback
from tests.support.processes import STUB
from tests.support.servers import Proxy, server

CLOCK = "import runpy, time; now = time.time; time.time = lambda: now() + 3600"
AN_HOUR_AHEAD = (sys.executable, "-c", f"{CLOCK}; runpy.run_module({STUB[-1]!r}, None, '__main__')")
"""The stub worker with a wrong clock."""


SLOTS = ("--slots", "16")

VISIBLE = 2 * SHORT
"""A visibility timeout for workers that must not miss it, also on a busy machine."""


@contextlib.contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    """A Redis of the scene's own."""
    with server(folder) as redis_server, Scene(folder, redis_server.url) as made:
        yield made


def killed(folder: Path, size: Size) -> Row:
    """SIGKILL in the middle of evaluations; a supervisor starts the next worker at once."""
    with scene(folder) as at:
        worker = at.start()
        for _ in range(size.repetitions):
            # Long enough that some are left when the signal comes, however busy the machine is.
            at.send(size.messages, seconds=0.3)
            at.wait_in_hand()
            at.stop(worker, signal.SIGKILL)
            end = at.fault_ended()
            worker = at.start()
            at.consumes_again(end)
            at.drain()
        return at.close(size.repetitions)


def told_to_stop(folder: Path, size: Size) -> Row:
    """SIGTERM twice under full load; what is in hand takes longer than the grace period."""
    with scene(folder) as at:
        worker = at.start(*SLOTS, shutdown_grace_seconds=0.3)
        for _ in range(size.repetitions):
            at.send(size.messages, seconds=0.6)
            at.wait_in_hand()
            at.stop(worker, signal.SIGTERM)
            worker.signal(signal.SIGTERM)
            assert worker.wait() == 0
            assert " ERROR " not in worker.log.read_text()
            assert at.in_hand == 0, "given back"
            end = at.fault_ended()
            worker = at.start(*SLOTS, shutdown_grace_seconds=0.3)
            at.consumes_again(end)
        return at.close(size.repetitions)


def frozen(folder: Path, size: Size) -> Row:
    """SIGSTOP for longer than the visibility timeout; another worker evaluates what it had."""
    with scene(folder) as at:
        worker = at.start().wait_until_ready()
        at.start().wait_until_ready()
        with at.traffic(seconds=0.02):
            for _ in range(size.repetitions):
                at.send(size.messages, seconds=0.05)
                at.wait_in_hand(2)
                worker.signal(signal.SIGSTOP)
                time.sleep(size.seconds)
                at.send(size.messages, seconds=0.05)
                worker.signal(signal.SIGCONT)
                at.consumes_again(worker=worker)
        return at.close(size.repetitions)


def cut_off(folder: Path, size: Size) -> Row:
    """One worker cannot reach Redis for longer than the visibility timeout, another can."""
    socket = folder / "redis.sock"
    with (
        server(folder, "--unixsocket", str(socket)) as redis_server,
        Scene(folder, f"unix://{socket}") as at,
        _other_way(redis_server.port) as (port, away),
    ):
        at.start().wait_until_ready()
        worker = at.start(url=f"redis://127.0.0.1:{port}/0").wait_until_ready()
        with at.traffic(seconds=0.02):
            for _ in range(size.repetitions):
                at.send(size.messages, seconds=0.05)
                at.wait_in_hand(2)
                with away():
                    time.sleep(size.seconds)
                    at.send(size.messages, seconds=0.05)
                at.consumes_again(worker=worker)
        return at.close(size.repetitions)


def cut_off_by() -> str:
    """How a worker is cut off here."""
    return "network namespace" if loopback.is_own() else "proxy"


@contextlib.contextmanager
def _other_way(port: int) -> Iterator[tuple[int, loopback.Away]]:
    """A port that leads to Redis, and what cuts it off without anybody being told."""
    if loopback.is_own():
        yield port, loopback.down
    else:
        with Proxy(port).running() as proxy:
            yield proxy.port, proxy.silent


def slow(folder: Path, size: Size) -> Row:
    """Evaluations that take longer than the visibility timeout; nobody else gets them."""
    with scene(folder) as at:
        for _ in range(2):
            at.start(*SLOTS, visibility_timeout=VISIBLE).wait_until_ready()
        for _ in range(size.repetitions):
            at.send(size.messages, seconds=2.5 * VISIBLE)
        return at.close(size.repetitions, again=0)


def clocks(folder: Path, size: Size) -> Row:
    """One worker's clock is an hour ahead of the other's; nobody gets what the other has."""
    with scene(folder) as at:
        at.start(*SLOTS, command=AN_HOUR_AHEAD, visibility_timeout=VISIBLE).wait_until_ready()
        at.start(*SLOTS, visibility_timeout=VISIBLE).wait_until_ready()
        for _ in range(size.repetitions):
            at.send(size.messages, seconds=2.5 * VISIBLE)
        return at.close(size.repetitions, again=0)
