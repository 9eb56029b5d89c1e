"""Start a worker in a process of its own, wait until it is ready, and end it.

Knows the URL in a worker's log, and its `/readyz` and `/metrics` pages; nothing of what the worker
evaluates. Imports no torch.
"""

import contextlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Self, TypeVar

from schemas import SQEHRMError
from worker.child import end_child, start_child
from worker.telemetry.scrape import Scrape, ScrapeError, read_page, scrape

START_SECONDS = 120.0
"""Time to import torch and to load the checkpoint, also on a slow and busy machine."""

POLL_SECONDS = 0.02
"""Pause between two checks of a worker that starts: well below what a person notices."""

SERVING = re.compile(r" serving (\S+)/metrics,")
"""Log line of `worker.process.run` with the worker's URL, since the worker may choose its port."""

T = TypeVar("T")


class ChildWorkerError(SQEHRMError):
    """A worker process ended, or did not start in time."""


@dataclass(frozen=True)
class ChildWorker:
    """A worker process that ends with this one, however this one ends."""

    process: subprocess.Popen[bytes]
    url: str
    """Base URL of its pages."""
    log: Path

    def check(self) -> None:
        """Raise `ChildWorkerError` if the worker has ended."""
        _check(self.process, self.log)

    def is_ready(self) -> bool:
        """Whether the worker takes messages."""
        with contextlib.suppress(ScrapeError):
            return read_page(f"{self.url}/readyz")[0] == HTTPStatus.OK
        return False

    def wait_until_ready(self) -> Self:
        """Wait until the worker takes messages. Raises `ChildWorkerError`."""
        _wait(self.process, self.log, "is not ready", lambda: self.is_ready() or None)
        return self

    def scrape(self) -> Scrape:
        """Read the worker's figures. Raises `ScrapeError`."""
        return scrape(self.url)


@contextlib.contextmanager
def start_worker(
    command: Sequence[str], *, log: Path, environ: Mapping[str, str], cwd: Path | None = None
) -> Iterator[ChildWorker]:
    """Start a worker; at the end of the block, send it SIGTERM and wait until it has finished.

    When the block begins, the worker serves its pages but may not be ready yet.

    Args:
        command: A command that runs a worker, such as `sqe-hrm worker`, with its options.
        log: File for the worker's output; an existing file is overwritten.
        environ: The worker's environment.
        cwd: The worker's folder; this process's by default.

    Raises:
        ChildWorkerError: The worker ended, or did not serve its pages in time.
    """
    with log.open("wb") as output:
        process = start_child(command, log=output, cwd=cwd, environ=environ)
    try:
        url = _wait(process, log, "serves no metrics", lambda: _find_url(log))
        yield ChildWorker(process, url, log)
    finally:
        end_child(process)


def _find_url(log: Path) -> str | None:
    found = SERVING.search(log.read_text(errors="replace"))
    return found and found[1]


def _wait(
    process: subprocess.Popen[bytes], log: Path, problem: str, look: Callable[[], T | None]
) -> T:
    """Call `look` until it returns a value; `problem` words the error if it never does."""
    deadline = time.monotonic() + START_SECONDS
    while (found := look()) is None:
        _check(process, log)
        if time.monotonic() > deadline:
            raise ChildWorkerError(f"the worker {problem} after {START_SECONDS:g} s: see {log}")
        time.sleep(POLL_SECONDS)
    return found


def _check(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll() is None:
        return
    lines = log.read_text(errors="replace").strip().splitlines()
    raise ChildWorkerError(f"the worker ended: {lines[-1] if lines else 'no log'} (see {log})")
