"""Latency of a message: at half load, and beside a full backfill.

At half load an engine is compared with a server that works in static batches.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from functools import partial
from itertools import count
from statistics import median

import torch

from hrm.inference.config import Inference
from hrm.inference.engine import Engine
from hrm.inference.prediction import EngineClosedError, Prediction, submit_when_room
from hrm.model.batch import encode
from hrm.model.network import HRM
from hrm.model.reference_loop import LoopOutput, evaluate_batch
from schemas import HaltedBy, HRMExample
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.runs import Answers, interleaved, loop_run, percentile
from tests.benchmarks.setting import THREADS, Setting, known_examples

TITLE = "Latency at half load"

BACKFILL = 1000
"""Examples that are not urgent and wait in the engine."""

Submit = Callable[[HRMExample], Future[Prediction]]


def run(setting: Setting) -> str:
    checkpoint, slots = setting.checkpoint(), setting.slots
    examples = known_examples(checkpoint, setting.requests)
    inference = Inference(slots=slots, halting=HaltedBy.Q)
    alone, in_batches, continuous = (
        inference.network(checkpoint, setting.device) for _ in range(3)
    )
    full_load = known_examples(checkpoint, setting.halting_examples)
    (loads,) = interleaved(
        [lambda: loop_run(alone, full_load, slots, HaltedBy.Q).rate], setting.rounds
    )
    rate = median(loads) / 2

    def static(seeds: Iterator[int]) -> list[float]:
        with closing(
            StaticServer(in_batches, slots=slots, halting=HaltedBy.Q, threads=THREADS)
        ) as server:
            return _latencies(server.submit, examples, rate, seeds)

    def engine(seeds: Iterator[int]) -> list[float]:
        with closing(
            Engine(continuous, slots=slots, halting=HaltedBy.Q, threads=THREADS)
        ) as running:
            return _latencies(partial(submit_when_room, running), examples, rate, seeds)

    given = interleaved([partial(static, count()), partial(engine, count())], setting.rounds)
    pooled = [[seconds for own in rounds for seconds in own] for rounds in given]
    figures = [[percentile(own, share) for share in (0.5, 0.99)] for own in pooled]
    ratios = [ours / theirs for theirs, ours in zip(*figures, strict=True)]
    beside = {rule: _beside_backfill(setting, rule) for rule in HaltedBy}
    names = ("static batches", "engine")
    rows = [
        [name, *(f"{1000 * seconds:,.1f}" for seconds in own)]
        for name, own in zip(names, figures, strict=True)
    ]
    return paragraphs(
        f"{checkpoint.name}, its known messages, float32, q rule, {slots} slots; "
        f"{len(pooled[0]):,} requests in {setting.rounds} paired runs. Requests arrive at random "
        f"(Poisson), at the same times for both servers, {rate:,.1f} per second: half the rate of "
        "static batches at full load.",
        table(
            ["server", "median, ms", "p99, ms"],
            [*rows, ["engine / static", *(f"{ratio:.2f}" for ratio in ratios)]],
        ),
        f"How many times as long an urgent example takes beside {BACKFILL:,} that are not urgent "
        f"as alone. Urgent ones follow each other, {setting.single_examples * 8} in each of "
        f"{setting.rounds} paired runs.",
        table(
            ["rule", "median", "p99"],
            [[rule.value, *(f"{ratio:.2f}" for ratio in own)] for rule, own in beside.items()],
        ),
    )


def _beside_backfill(setting: Setting, halting: HaltedBy) -> list[float]:
    """Ratios of an urgent example's median and p99 latency, beside a backfill and alone."""
    checkpoint = setting.checkpoint()
    network = Inference(slots=setting.slots, halting=halting).network(checkpoint, setting.device)
    urgent = known_examples(checkpoint, setting.single_examples * 8)

    def seconds(backfill: Sequence[HRMExample]) -> list[float]:
        given = []
        with closing(
            Engine(network, slots=setting.slots, halting=halting, threads=THREADS)
        ) as engine:

            def submit(example: HRMExample) -> None:
                with suppress(EngineClosedError):
                    future = engine.submit(example, urgent=False)
                    future.add_done_callback(lambda ended: _again(ended, partial(submit, example)))

            for example in backfill:
                submit(example)
            for example in urgent:
                started = time.perf_counter()
                engine.submit(example).result()
                given.append(time.perf_counter() - started)
        return given

    waiting = known_examples(checkpoint, BACKFILL)
    rounds = interleaved([partial(seconds, []), partial(seconds, waiting)], setting.rounds)
    alone, beside = ([each for own in given for each in own] for given in rounds)
    return [percentile(beside, share) / percentile(alone, share) for share in (0.5, 0.99)]


def _again(ended: Future[Prediction], submit: Callable[[], object]) -> None:
    """Submit another example for one that was answered, so that the queue stays full."""
    if ended.exception() is None:
        submit()


def _latencies(
    submit: Submit, examples: Sequence[HRMExample], rate: float, seeds: Iterator[int]
) -> list[float]:
    """Seconds from each example's due time to its answer; `rate` examples are due per second."""
    source = random.Random(next(seeds))
    answers = Answers(len(examples))
    due = time.perf_counter()
    for example in examples:
        due += source.expovariate(rate)
        time.sleep(max(0.0, due - time.perf_counter()))
        answers.make_room()
        answers.watch(submit(example), since=due)
    answers.wait()
    return answers.seconds


class StaticServer:
    """A server that takes up to `slots` waiting examples and answers them when the last halts."""

    def __init__(self, network: HRM, *, slots: int, halting: HaltedBy, threads: int) -> None:
        self._threads = threads
        self._network = network
        self._slots = slots
        self._halting = halting
        self._waiting: deque[tuple[HRMExample, Future[Prediction]]] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, example: HRMExample) -> Future[Prediction]:
        future: Future[Prediction] = Future()
        with self._changed:
            self._waiting.append((example, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Close after all waiting examples are answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        while work := self._take():
            examples = [example for example, _ in work]
            batch = encode(examples, self._network.config).to(self._network.H_init.device)
            output = evaluate_batch(self._network, batch, halting=self._halting)
            for (_, future), prediction in zip(work, _predictions(output), strict=True):
                future.set_result(prediction)

    def _take(self) -> list[tuple[HRMExample, Future[Prediction]]]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return [self._waiting.popleft() for _ in range(min(self._slots, len(self._waiting)))]


def _predictions(output: LoopOutput) -> list[Prediction]:
    return [
        Prediction(
            tokens=tuple(tokens),
            act_steps=steps,
            halted_by=HaltedBy.Q if q_halt > q_continue else HaltedBy.MAX_STEPS,
            q_halt=q_halt,
            q_continue=q_continue,
            q_flips=q_flips,
        )
        for tokens, steps, (q_halt, q_continue), q_flips in zip(
            output.predictions.tolist(),
            output.steps.tolist(),
            output.q_logits.tolist(),
            output.q_flips.tolist(),
            strict=True,
        )
    ]
