"""The Prometheus metrics of a worker.

Knows numbers and what is read at each scrape; those of evaluated messages are
`worker.telemetry.verdicts`'s. Label values come from fixed lists only: never a message's text,
never an id. Each process has one `Metrics` object, with a registry of its own.
"""

from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics_core import Metric

from schemas import RejectionReason
from worker.evaluator import Evaluator
from worker.telemetry.families import PREFIX, OnScrape
from worker.telemetry.families import counter as _counter
from worker.telemetry.families import gauge as _gauge
from worker.telemetry.labels import BOUNDS, ErrorKind, Reload
from worker.telemetry.verdicts import Evaluation, VerdictFigures

DeviceMemory = Callable[[], dict[str, int]]
"""Function that reads the bytes by kind; empty if the device has no memory of its own."""


class Metrics:
    """The metrics of one worker process. Threads share one object."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._verdicts = VerdictFigures(self.registry)
        self._tested: tuple[int, int] | None = None
        """Solved pairs and pairs of the last self-test."""

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

        self._rejected = counter(
            "rejected_total", "Messages that were refused and became dead letters.", "reason"
        )
        self._duplicates = counter(
            "duplicates_total", "Messages that were answered again, and are not counted again."
        )
        self._errors = counter("errors_total", "Errors of this worker.", "kind")
        self._reloads = counter("reloads_total", "Requests for another checkpoint.", "result")
        self._self_test_failures = counter(
            "self_test_failures_total", "Self-tests in which too few known pairs were solved."
        )
        # They start at 0, so that the first one shows as an increase.
        for reason in RejectionReason:
            self._rejected.labels(reason)
        for kind in ErrorKind:
            self._errors.labels(kind)
        for result in Reload:
            self._reloads.labels(result)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Count a message that was evaluated."""
        self._verdicts.evaluated(evaluation)

    def rejected(self, reason: RejectionReason) -> None:
        """Count a dead letter."""
        self._rejected.labels(reason).inc()

    def duplicate(self) -> None:
        """Count a message that was answered again, and not counted again."""
        self._duplicates.inc()

    def error(self, kind: ErrorKind) -> None:
        """Count an error."""
        self._errors.labels(kind).inc()

    def serves(self, evaluator: Evaluator) -> None:
        """Note whose checkpoint serves from now on; the series of those long gone are dropped."""
        self._verdicts.serves(evaluator)

    def reload(self, result: Reload) -> None:
        """Count a request for another checkpoint by its result."""
        self._reloads.labels(result).inc()

    def self_tested(self, solved: int, pairs: int, *, passed: bool) -> None:
        """Show the result of a self-test."""
        self._tested = solved, pairs
        self._self_test_failures.inc(not passed)

    def watch_engine(
        self,
        evaluator: Evaluator,
        *,
        memory: DeviceMemory,
        stalled_seconds: Callable[[], float],
        cached: bool,
    ) -> None:
        """Show the evaluator's engine, checkpoint and device at every scrape from now on.

        Args:
            evaluator: Everything is read from it at each scrape, the checkpoint included.
            memory: The device's memory.
            stalled_seconds: Returns the time since the engine made progress.
            cached: Whether the engine has a cache of predictions.
        """

        def collect() -> Iterable[Metric]:
            yield from _engine(evaluator, cached=cached)
            yield _gauge(
                "engine_stalled_seconds",
                "Time since the engine last finished a step; 0 while it has nothing to do.",
                {(): stalled_seconds()},
            )
            checkpoint = evaluator.checkpoint
            labels = (checkpoint.name, checkpoint.digest)
            yield _gauge("checkpoint_info", "1.", {labels: 1}, "checkpoint", "digest")
            if self._tested is not None:
                solved, pairs = self._tested
                yield _gauge(
                    "self_test_solved_ratio",
                    "Solved of the known pairs of the last self-test.",
                    {(): solved / pairs},
                )
            yield from _recorded(evaluator)
            device = evaluator.device
            yield _gauge("device_info", "1.", {(device,): 1}, "device")
            engine = (str(evaluator.halting), evaluator.dtype)
            yield _gauge("engine_info", "1.", {engine: 1}, "halting", "dtype")
            used = memory()
            if used:
                values: dict[tuple[str, ...], float] = {
                    (device, kind): size for kind, size in used.items()
                }
                yield _gauge("device_memory_bytes", "Memory of the GPU.", values, "device", "kind")

        self.registry.register(OnScrape(collect))


def _recorded(evaluator: Evaluator) -> Iterable[Metric]:
    """The recorded figures with which the checkpoint's live ones are compared."""
    name = evaluator.checkpoint.name
    rate = evaluator.recorded_rate
    if rate is not None:
        yield _gauge(
            "checkpoint_baseline_solved_ratio",
            "Share of its accepted pairs that the checkpoint solved when it was measured under "
            "this halting rule, and the ends of its 95 % Wilson interval.",
            {(name, bound): value for bound, value in zip(BOUNDS, rate, strict=True)},
            *("checkpoint", "bound"),
        )
    tokens: dict[tuple[str, ...], float] = {
        (name, token): share for token, share in evaluator.training_tokens.items()
    }
    if tokens:
        yield _gauge(
            "checkpoint_training_token_ratio",
            "Share of the token in the completions that the checkpoint was trained on.",
            tokens,
            *("checkpoint", "token"),
        )


def _engine(evaluator: Evaluator, *, cached: bool) -> Iterable[Metric]:
    """The metrics of the evaluator's engine, all from one snapshot of it."""
    now = evaluator.statistics
    yield _gauge(
        "engine_slots",
        "Places of the engine.",
        {("busy",): now.busy_slots, ("free",): max(0, now.slots - now.busy_slots)},
        "state",
    )
    yield _gauge("engine_waiting", "Messages without a slot yet.", {(): now.waiting})
    yield _counter("engine_steps", "ACT steps of the engine.", {(): now.steps})
    yield _counter(
        "engine_occupied_slots",
        "Slots that a step was for, summed over the steps.",
        {(): now.occupied},
    )
    yield _counter("engine_refills", "Messages that took a slot beside others.", {(): now.refills})
    yield _counter(
        "engine_slot_reductions",
        "Times that the engine went on with fewer slots because memory ran out.",
        {(): now.slot_reductions},
    )
    if cached:
        asked: dict[tuple[str, ...], float] = {
            ("hit",): now.cache_hits,
            ("miss",): now.cache_misses,
        }
        yield _counter("prediction_cache", "Predictions looked up.", asked, "result")
