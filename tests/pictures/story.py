"""The events of the run that the pictures show: healthy agents, and then one that changes."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from schemas import Category
from tests.support.deployment import Deployment
from tests.support.processes import ROOT, workers_of

SCRAPE_SECONDS = 5.0

AFTER_SECONDS = 2 * SCRAPE_SECONDS
"""Time until the last message has been scraped."""

WINDOW = "5m"
"""Time that shares are averaged over, short beside the run."""

CHANGED = Category.CI_CD
"""Category in which one agent changes its answers."""

BACKFILL = 600
"""Messages of the file: some seconds of work."""


@dataclass
class Story:
    """Three agents send messages every second; now and then something happens.

    Args:
        running: Gets the messages.
        minutes: Length of the run.
    """

    running: Deployment
    minutes: float
    start: float = field(default_factory=time.time)
    told: list[str] = field(default_factory=list)
    """Events, and when they happened."""
    drifts: bool = False

    def __str__(self) -> str:
        return (
            "Two workers with sqe-demo, the monitor, and the agents planner, coder and tester, "
            f"which send about six messages a second. {'; '.join(self.told)}."
        )

    def tell(self) -> None:
        """Send messages for the whole time."""
        events = self._events()
        moment, happen = next(events)
        for second in itertools.count():
            now = time.time()
            if now > self.start + 60 * self.minutes:
                return
            if now > self.start + 60 * self.minutes * moment:
                self.told.append(f"{_clock(now)}: {happen()}")
                moment, happen = next(events)
            self._send(second)
            time.sleep(max(0.0, now + 1 - time.time()))

    def _events(self) -> Iterator[tuple[float, Callable[[], str]]]:
        """Events, each after a share of the time."""
        yield 0.25, self._send_file
        yield 0.35, self._drift
        yield 0.75, self._reload
        yield 0.85, self._kill
        yield 2, str

    def _send(self, second: int) -> None:
        agents = self.running.agents
        changing = agents.drifting if self.drifts else agents.known
        agents.send(
            *agents.known("planner", 2),
            *agents.known("tester", 2),
            *agents.known("coder", 1, Category.TEST_PLANNING),
            *changing("coder", 1, CHANGED),
        )
        if second % 5 == 0:
            agents.send(*agents.unknown("planner", 1))
        if second % 30 == 0:
            agents.malformed(1)
            agents.send(*agents.unseen("tester", 1))
            agents.twice("planner")

    def _send_file(self) -> str:
        self.running.agents.backfill(BACKFILL)
        return f"a file of {BACKFILL} messages"

    def _drift(self) -> str:
        self.drifts = True
        return f"coder changes its answers in {CHANGED}"

    def _reload(self) -> str:
        command = [sys.executable, "-m", "worker", "worker", "reload", "--checkpoint", "sqe-demo-2"]
        environ = {**os.environ, "SQE_REDIS_URL": self.running.redis_url}
        subprocess.run(command, check=True, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL)
        return "the workers load sqe-demo-2"

    def _kill(self) -> str:
        os.kill(min(workers_of(self.running.workers)), signal.SIGKILL)
        return "a worker is killed, and started again by the command above it"


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M")
