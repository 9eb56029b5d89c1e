"""worker.process.watchdog: an engine that hangs is told from one that works or rests."""

import threading
import time
from dataclasses import replace

from tests.support.processes import wait_for
from worker.evaluator import EngineStatistics
from worker.process import watchdog
from worker.process.watchdog import Watchdog


class Engine:
    def __init__(self) -> None:
        self.now = EngineStatistics(in_turn=True)
        self.reads = 0
        self.stalled = threading.Event()
        self.reasons: list[str] = []

    def read(self) -> EngineStatistics:
        self.reads += 1
        return self.now

    def watch(self, limit: float) -> Watchdog:
        watched = Watchdog(lambda: {0: self.read()}, limit)
        watched.start(self.on_stalled)
        return watched

    def on_stalled(self, reason: str) -> None:
        self.reasons.append(reason)
        self.stalled.set()


class Works(Engine):
    """Ends a turn between any two looks."""

    def read(self) -> EngineStatistics:
        self.now = replace(self.now, turns=self.now.turns + 1)
        return super().read()


def test_a_turn_that_does_not_end_is_reported_once() -> None:
    engine = Engine()
    watched = engine.watch(limit=0.05)
    assert engine.stalled.wait(30)
    assert engine.reasons == ["the engine has not finished a step for 0.05 s"]
    assert watched.stalled_seconds >= 0.05, "and stays so for the health page"


def test_an_engine_at_work_or_without_work_does_not_hang() -> None:
    resting = Engine()
    resting.now = EngineStatistics()
    for engine in (Works(), resting):
        watched = engine.watch(limit=0.01)
        wait_for(lambda engine=engine: engine.reads > 2 * watchdog.BEATS, "looked")  # type: ignore[misc]
        assert watched.stalled_seconds == 0
        assert engine.reasons == []


def test_the_end_of_a_turn_starts_the_time_again() -> None:
    engine = Engine()
    watched = engine.watch(limit=60)
    wait_for(lambda: watched.stalled_seconds > 0, "stalled")
    engine.now = replace(engine.now, turns=1)
    wait_for(lambda: watched.stalled_seconds == 0, "reset")


def test_a_pause_of_the_whole_process_counts_as_one_look() -> None:
    class Pausing(Engine):
        def read(self) -> EngineStatistics:
            time.sleep(0.1)  # as if the process were stopped
            return super().read()

    engine = Pausing()
    watched = engine.watch(limit=0.06)
    wait_for(lambda: engine.reads >= 5, "looked")
    assert watched.stalled_seconds < 0.01
    assert engine.reasons == []
