"""Timed runs of the plain loop and of an engine over the same examples, and their medians."""

import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from hrm.inference.prediction import Prediction, Predictor, submit_when_room
from hrm.model.batch import encode
from hrm.model.network import HRM
from hrm.model.reference_loop import evaluate_batch
from schemas import HaltedBy, HRMExample
from tests.benchmarks.setting import THREADS

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    rate: float
    """Examples per second."""
    tokens: Sequence[tuple[int, ...]]
    steps: Sequence[int]

    @property
    def mean_steps(self) -> float:
        return statistics.fmean(self.steps)

    def solved(self, examples: Sequence[HRMExample]) -> float:
        """Share of `examples` with every target token predicted correctly."""
        return statistics.fmean(
            tokens[: len(example.target_sequence)] == example.target_sequence
            for tokens, example in zip(self.tokens, examples, strict=True)
        )


def interleaved(contestants: Sequence[Callable[[], T]], rounds: int) -> list[list[T]]:
    """Results of each contestant in each round, after a round to warm up.

    Every other round runs in reverse order, so that no contestant always follows the same other
    one. Each call gets a new thread. Its OpenMP threads end with it; otherwise they would slow down
    the other contestants.
    """
    contestants = [partial(_in_own_thread, contestant) for contestant in contestants]
    for contestant in contestants:
        contestant()
    given: list[list[T]] = [[] for _ in contestants]
    for turn in range(rounds):
        order = list(zip(contestants, given, strict=True))
        for contestant, own in order if turn % 2 == 0 else reversed(order):
            own.append(contestant())
    return given


def _in_own_thread(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(THREADS,)) as thread:
        return thread.submit(work).result()


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios within the pairs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def loop_run(network: HRM, examples: Sequence[HRMExample], slots: int, halting: HaltedBy) -> Run:
    """Run the plain loop in static batches of `slots` examples."""
    tokens: list[tuple[int, ...]] = []
    steps: list[int] = []
    started = time.perf_counter()
    for start in range(0, len(examples), slots):
        batch = encode(examples[start : start + slots], network.config)
        output = evaluate_batch(network, batch.to(network.H_init.device), halting=halting)
        tokens += map(tuple, output.predictions.tolist())
        steps += output.steps.tolist()
    return Run(len(examples) / (time.perf_counter() - started), tokens, steps)


def engine_run(
    engine: Predictor, examples: Sequence[HRMExample], in_flight: int | None = None
) -> Run:
    """Run an engine at full load: up to `in_flight` examples are unanswered at any time.

    `in_flight` defaults to four times the slots. If examples halt at different steps, the last ones
    leave slots free, so the time then ends when only as many are unanswered as there are slots.
    """
    in_flight = in_flight or 4 * engine.statistics.slots
    answers = Answers(in_flight)
    started = time.perf_counter()
    futures = []
    for example in examples:
        answers.make_room()
        futures.append(answers.watch(submit_when_room(engine, example), since=started))
    predictions = [future.result() for future in futures]
    answers.wait()
    counted = len(examples)
    if engine.halting is HaltedBy.Q and counted > engine.statistics.slots:
        counted -= engine.statistics.slots
    return Run(
        counted / answers.seconds[counted - 1],
        [prediction.tokens for prediction in predictions],
        [prediction.act_steps for prediction in predictions],
    )


class Answers:
    """Durations of futures, of which at most `in_flight` are unanswered at any time."""

    def __init__(self, in_flight: int) -> None:
        self.seconds: list[float] = []
        """Durations in the order in which the futures were answered."""
        self._in_flight = in_flight
        self._free = threading.Semaphore(in_flight)

    def make_room(self) -> None:
        """Wait until one more future may be watched."""
        self._free.acquire()

    def watch(self, future: Future[Prediction], *, since: float) -> Future[Prediction]:
        """Record the time from `since`, a `time.perf_counter`, until `future` is answered."""

        def note(_: Future[Prediction]) -> None:
            self.seconds.append(time.perf_counter() - since)
            self._free.release()

        future.add_done_callback(note)
        return future

    def wait(self) -> None:
        """Wait until all are recorded: a future wakes its waiters before it calls its callbacks."""
        for _ in range(self._in_flight):
            self._free.acquire()
