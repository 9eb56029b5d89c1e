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
    """Examples a second."""
    tokens: Sequence[tuple[int, ...]]
    steps: Sequence[int]

    @property
    def mean_steps(self) -> float:
        return statistics.fmean(self.steps)

    def solved(self, examples: Sequence[HRMExample]) -> float:
        """The share whose target was predicted in full."""
        return statistics.fmean(
            tokens[: len(example.target_sequence)] == example.target_sequence
            for tokens, example in zip(self.tokens, examples, strict=True)
        )


def interleaved(contestants: Sequence[Callable[[], T]], rounds: int) -> list[list[T]]:
    """What each gave in each round; a round before the first warms up.

    Every other round goes backwards, so that nobody always runs in the wake of the same other. Each
    has a thread of its own, with which OpenMP's threads for it end: those of one would slow others.
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
    """The median of the ratios within the pairs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def loop_run(network: HRM, examples: Sequence[HRMExample], slots: int, halting: HaltedBy) -> Run:
    """Static batches of `slots`."""
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
    """At full load: up to `in_flight` examples (default: four times the slots) are unanswered.

    Where examples halt when they like, the last ones leave slots free. So the time ends there when
    only as many are unanswered as there are slots.
    """
    in_flight = in_flight or 4 * engine.slots
    answers = Answers(in_flight)
    started = time.perf_counter()
    futures = []
    for example in examples:
        answers.make_room()
        futures.append(answers.watch(submit_when_room(engine, example), since=started))
    predictions = [future.result() for future in futures]
    answers.wait()
    counted = len(examples)
    if engine.halting is HaltedBy.Q and counted > engine.slots:
        counted -= engine.slots
    return Run(
        counted / answers.seconds[counted - 1],
        [prediction.tokens for prediction in predictions],
        [prediction.act_steps for prediction in predictions],
    )


class Answers:
    """How long futures took, of which at most `in_flight` are unanswered."""

    def __init__(self, in_flight: int) -> None:
        self.seconds: list[float] = []
        """In the order in which they were answered."""
        self._in_flight = in_flight
        self._free = threading.Semaphore(in_flight)

    def make_room(self) -> None:
        """Wait until one more may be watched."""
        self._free.acquire()

    def watch(self, future: Future[Prediction], *, since: float) -> Future[Prediction]:
        """Have it noted; `since` is a `time.perf_counter`."""

        def note(_: Future[Prediction]) -> None:
            self.seconds.append(time.perf_counter() - since)
            self._free.release()

        future.add_done_callback(note)
        return future

    def wait(self) -> None:
        """Until all are noted: a future wakes who waits for it before it calls back."""
        for _ in range(self._in_flight):
            self._free.acquire()
