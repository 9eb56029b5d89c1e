"""The share of an engine's own rate that arrives in Redis as verdicts, without a cache.

A worker and an engine alone take turns of a second, each stopped meanwhile. So both have the same
machine, whose speed changes within a minute more than a worker's share does.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import redis

from schemas import HaltedBy
from tests.benchmarks import engine_alone
from tests.benchmarks.bench_path import BATCH, filled, two_processes
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.runs import median_ratio
from tests.benchmarks.setting import THREADS, Setting
from tests.support.processes import DEADLINE, ROOT, wait_for
from worker.broker.keys import AGENTS

TITLE = "The way of a message beside its engine"

TURN_SECONDS = 1.0
"""Time for which one of the two runs: dozens of the engine's steps under `q`, and short enough for
both to meet the same changes of the machine's speed."""


@dataclass(frozen=True)
class Contestant:
    """A process that answers examples."""

    process: subprocess.Popen[bytes]
    answered: Callable[[], int]
    """Counts its answers while it runs."""

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def take_turn(self) -> tuple[float, int]:
        """Let it run for a turn; returns the turn's seconds, and its answers since its start."""
        started = time.perf_counter()
        self.process.send_signal(signal.SIGCONT)
        time.sleep(TURN_SECONDS)
        answered = self.answered()
        self.stop()
        return time.perf_counter() - started, answered


def run(setting: Setting) -> str:
    rows = [
        ("single messages", 1, HaltedBy.Q, 0, setting.halting_messages),
        ("single messages", 1, HaltedBy.MAX_STEPS, 0, setting.fixed_messages),
    ]
    return paragraphs(_shares(setting), two_processes(setting, rows))


def _shares(setting: Setting) -> str:
    rows = []
    for halting in (HaltedBy.Q, HaltedBy.MAX_STEPS):
        for batch in (1, BATCH):
            rounds = [_round(setting, halting, batch) for _ in range(setting.rounds)]
            engines, workers = zip(*rounds, strict=True)
            rows.append(
                [
                    halting.value,
                    "single messages" if batch == 1 else f"batches of {batch}",
                    f"{median(engines):,.0f}",
                    f"{median(workers):,.0f}",
                    f"{median_ratio(workers, engines):.2f}",
                ]
            )
    return paragraphs(
        f"{setting.checkpoints[0].name}, its known messages, without a cache, float32, "
        f"{setting.slots} slots, {THREADS} threads, beside the engine alone. Medians of "
        f"{setting.rounds} rounds, each with new processes that have {setting.turns} turns of a "
        "second each, one after the other; a ratio is the median of the rounds' own.",
        table(["rule", "messages", "engine", "a worker", "ratio"], rows, left=2),
    )


def _round(setting: Setting, halting: HaltedBy, batch: int) -> tuple[float, float]:
    """Mean rates of an engine and of a worker."""
    with _engine(setting, halting) as engine:
        engines, workers = _in_turns(setting, engine, halting, batch)
    return _rate(engines), _rate(workers)


def _rate(turns: list[tuple[float, int]]) -> float:
    """Answers a second. What is under way at the end of a turn is an answer of the next one."""
    (_, before), *rest = turns
    return (rest[-1][1] - before) / sum(seconds for seconds, _ in rest)


def _in_turns(
    setting: Setting, engine: Contestant, halting: HaltedBy, batch: int
) -> tuple[list[tuple[float, int]], list[tuple[float, int]]]:
    """The turns of the engine and of a worker."""
    engines = [engine.take_turn(), engine.take_turn()]
    count = int(1.5 * _rate(engines) * (setting.turns + 3) * TURN_SECONDS) + 2 * BATCH
    with filled(setting, count, batch, halting=halting, cached=0) as (store, (started,)):
        worker = Contestant(started.process, lambda: _counted(store))
        wait_for(lambda: worker.answered() > 0, "the first verdict")
        worker.stop()
        engines, workers = [engine.take_turn()], [worker.take_turn()]
        for turn in range(setting.turns):
            pair = [(engine, engines), (worker, workers)]
            for contestant, turns in pair if turn % 2 else reversed(pair):
                turns.append(contestant.take_turn())
        if workers[-1][1] >= count:
            raise RuntimeError("the queue was empty too early: give it more messages")
        worker.process.send_signal(signal.SIGCONT)
    return engines, workers


def _counted(store: redis.Redis) -> int:
    """The sum of the agents' counts: their live messages, and a constant."""
    return sum(int(number) for number in store.hvals(AGENTS) if number)


@contextmanager
def _engine(setting: Setting, halting: HaltedBy) -> Iterator[Contestant]:
    """An engine that has answered its first examples, and is stopped."""
    command = [sys.executable, "-m", engine_alone.__name__]
    command += [
        str(setting.checkpoints[0].resolve()),
        setting.device,
        str(setting.slots),
        halting.value,
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        asked, given = process.stdin, process.stdout
        assert asked is not None
        assert given is not None

        def answered() -> int:
            asked.write(b"\n")
            asked.flush()
            return int(given.readline())

        engine = Contestant(process, answered)
        try:
            wait_for(lambda: answered() > 0, "the engine's first answer", 2 * DEADLINE)
            engine.stop()
            yield engine
        finally:
            process.kill()
