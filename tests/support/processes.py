"""Worker processes for the tests: start one, look at it, kill it."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from worker.process.child_worker import ChildWorker, start_worker
from worker.telemetry.scrape import read_page

REAL = (str(Path(sys.executable).with_name("sqe-hrm")), "worker")
"""The worker as an operator starts it."""

STUB = (sys.executable, "-m", "tests.support.stub_worker")
"""The worker with a stub evaluator; each prompt says what happens to its message."""

ROOT = Path(__file__).parents[2]

DEADLINE = 30.0
"""Seconds for anything to happen: far more than it takes, also on a busy machine."""


def wait_for(condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:g} s: {what}")
        time.sleep(0.01)


@dataclass(frozen=True)
class Worker(ChildWorker):
    """A running worker."""

    @classmethod
    @contextlib.contextmanager
    def start(
        cls, command: tuple[str, ...], folder: Path, redis_url: str, *options: str, **env: object
    ) -> Iterator[Self]:
        """A worker that serves its pages but is perhaps not ready; killed at the end."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SQE_")}
        started = start_worker(
            [*command, "--metrics-port", "0", *options],
            log=folder / f"worker-{time.monotonic_ns()}.log",
            environ={
                **clean,
                "PYTHONPATH": str(ROOT),
                "SQE_REDIS_URL": redis_url,
                **{f"SQE_{name.upper()}": str(value) for name, value in env.items()},
            },
            cwd=folder,
        )
        with started as child:
            try:
                yield cls(child.process, child.url, child.log)
            finally:
                child.process.kill()

    @property
    def name(self) -> str:
        """The name that is in its verdicts."""
        return f"{socket.gethostname()}:{self.process.pid}"

    def get(self, path: str) -> tuple[int, str]:
        return read_page(f"{self.url}{path}")

    def metrics(self) -> dict[str, float]:
        """Every sample as `name{label=value}…`, without the project's prefix."""
        return {
            sample.name.removeprefix("sqe_hrm_")
            + "".join(f"{{{key}={value}}}" for key, value in sorted(sample.labels.items())): (
                sample.value
            )
            for sample in self.scrape().samples
        }

    def total(self, name: str) -> int:
        """The sum of a counter over its labels."""
        return int(self.scrape().total(name))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(DEADLINE)


def workers_of(fleet: Worker) -> set[int]:
    """The process ids of a fleet's workers."""
    pid = fleet.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {
        int(child)
        for child in children
        if b"--device" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
    }
