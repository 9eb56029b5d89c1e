"""One worker process of a fleet: its output, its pages and its end.

Knows processes, the URL in a worker's log, and `/readyz`; nothing of when a worker is started.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import IO

from worker.child import start_child
from worker.fleet.members import Member
from worker.fleet.supervisor import KILLED
from worker.process.child_worker import SERVING
from worker.telemetry.scrape import ScrapeError, read_page

LOOK_SECONDS = 0.5
"""Pause between two looks at `/readyz`."""

ANSWER_SECONDS = 5.0
"""Longest time to wait for a page. A worker answers in milliseconds, a busy machine in tenths."""

OUTPUT_SECONDS = 1.0
"""Longest time to wait for the last lines of a worker that has ended; a process that it started may
still hold its output open."""

ERROR = re.compile(r"^(sqe-hrm: error|Error): ")
"""Beginning of the line with which a command names its error."""

STARTING = "starting"


class Child:
    """A running worker. Its output goes to this process's standard error, each line with its name.

    It ends when this process ends, however that happens (`worker.child`).

    Args:
        member: What it works for.
        command: Runs the worker.
        environ: Its environment.
    """

    def __init__(self, member: Member, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.member = member
        self.url: str | None = None
        """Base URL of its pages, once it serves them."""
        self.ready_since: float | None = None
        """When it was first ready, by the monotonic clock."""
        self.silent_seconds = 0.0
        """Time without an answer since it serves pages, or since it last answered."""
        self._not_ready: str | None = STARTING
        self._last_line = ""
        self._process = start_child(command, log=subprocess.PIPE, environ=environ)
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        self._reader = threading.Thread(
            target=self._read,
            args=(self._process.stdout,),
            name=f"output {member.name}",
            daemon=True,
        )
        self._reader.start()
        threading.Thread(target=self._look, name=f"look {member.name}", daemon=True).start()

    @property
    def not_ready_reason(self) -> str | None:
        """Why it takes no messages, as of the last look; None if it does."""
        return self._not_ready

    @property
    def last_line(self) -> str:
        """The last line of its output, without the beginning of an error."""
        return ERROR.sub("", self._last_line)

    def poll(self) -> int | None:
        """Return the exit status as shells do, 128 + N after signal N; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        self._reader.join(OUTPUT_SECONDS)
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        # Lets the watcher of `worker.child` go.
        self._process.stdin.close()
        return code if code >= 0 else KILLED - code

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens if it has ended."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it, and what it has started, at once."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self, output: IO[bytes]) -> None:
        with output:
            for raw in output:
                line = raw.decode(errors="replace").rstrip("\n")
                if self.url is None and (found := SERVING.search(line)):
                    self.url = found[1]
                if line.strip():
                    self._last_line = line.strip()
                # A terminal that is gone must not keep the worker from writing.
                with contextlib.suppress(OSError):
                    sys.stderr.write(f"[{self.member.name}] {line}\n")

    def _look(self) -> None:
        """Look at `/readyz` again and again until the process ends."""
        pause = threading.Event()
        while self._process.returncode is None:
            pause.wait(LOOK_SECONDS)
            if self.url is None:
                continue
            asked = time.monotonic()
            try:
                status, text = read_page(f"{self.url}/readyz", ANSWER_SECONDS)
            except ScrapeError:
                self._not_ready = "does not answer"
                # Not more than a look takes: this process may have been stopped meanwhile.
                took = min(time.monotonic() - asked, ANSWER_SECONDS)
                self.silent_seconds += took + LOOK_SECONDS
                continue
            self.silent_seconds = 0.0
            self._not_ready = None if status == HTTPStatus.OK else text.strip()
            if status == HTTPStatus.OK and self.ready_since is None:
                self.ready_since = time.monotonic()
