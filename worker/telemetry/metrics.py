"""The Prometheus metrics of a worker.

Knows numbers and what is read at each scrape; those of evaluated messages are
`worker.telemetry.verdicts`'s. Label values come from fixed lists only: never a message's text,
never an id. Each process has one `Metrics` object, with a registry of its own.
"""

import platform
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics_core import Metric

from schemas import RejectionReason
from worker.evaluator import Evaluator
from worker.telemetry.families import PREFIX, OnScrape
from worker.telemetry.families import counter as _counter
from worker.telemetry.families import gauge as _gauge
from worker.telemetry.flow import Flow, flow_metrics
from worker.telemetry.health import Readiness
from worker.telemetry.labels import BOUNDS, SENT, ErrorKind, Reload, Request, State
from worker.telemetry.verdicts import Evaluation, VerdictFigures

_MESSAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Bucket limits in messages; a task has at most 256."""

_REQUEST_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2)
"""Bucket limits in seconds, from an idle Redis nearby to the longest that a worker waits."""

DeviceMemory = Callable[[], dict[str, int]]
"""Function that reads the bytes by kind; empty if the device has no memory of its own."""


class Metrics:
    """The metrics of one worker process. Threads share one object."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(OnScrape(_build))
        self._verdicts = VerdictFigures(self.registry)
        self._loaded: float = 0.0
        """When the checkpoint that serves began to (Unix seconds)."""
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
        self._restored = counter(
            "restored_total",
            "Messages that this worker put back because another one had left them.",
            "queue",
        )
        self._task_messages = Histogram(
            f"{PREFIX}_task_messages",
            "Messages of a task that was read; 1 of a single message.",
            buckets=_MESSAGES,
            registry=self.registry,
        )
        self._redis = Histogram(
            f"{PREFIX}_redis_request_seconds",
            "Seconds from sending a request to Redis until its reply or its failure.",
            ["request"],
            buckets=_REQUEST_SECONDS,
            registry=self.registry,
        )
        # They start at 0, so that the first one shows as an increase.
        for reason in RejectionReason:
            self._rejected.labels(reason)
        for kind in ErrorKind:
            self._errors.labels(kind)
        for result in Reload:
            self._reloads.labels(result)
        for request in Request:
            self._redis.labels(request)
        for lane in SENT:
            self._restored.labels(lane.queue)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Count a message that was evaluated."""
        self._verdicts.evaluated(evaluation)

    def rejected(self, reason: RejectionReason) -> None:
        """Count a dead letter."""
        self._rejected.labels(reason).inc()

    def duplicate(self) -> None:
        """Count a message that was answered again, and not counted again."""
        self._duplicates.inc()

    def task(self, messages: int) -> None:
        """Count a task that was read, by its number of messages."""
        self._task_messages.observe(messages)

    def restored(self, queue: str, messages: int) -> None:
        """Count messages that were put back for a dead worker."""
        self._restored.labels(queue).inc(messages)

    def redis_request(self, request: Request, seconds: float) -> None:
        """Add the time of a request to Redis."""
        self._redis.labels(request).observe(seconds)

    def watch_hand(self, flows: Callable[[], Mapping[str, Flow]]) -> None:
        """Show what became of the messages that were taken, at every scrape from now on."""
        self.registry.register(OnScrape(lambda: flow_metrics(flows())))

    def error(self, kind: ErrorKind) -> None:
        """Count an error."""
        self._errors.labels(kind).inc()

    def serves(self, evaluator: Evaluator) -> None:
        """Note whose checkpoint serves from now on; the series of those long gone are dropped."""
        self._verdicts.serves(evaluator)
        self._loaded = time.time()

    def reload(self, result: Reload) -> None:
        """Count a request for another checkpoint by its result."""
        self._reloads.labels(result).inc()

    def self_tested(self, solved: int, pairs: int, *, passed: bool) -> None:
        """Show the result of a self-test."""
        self._tested = solved, pairs
        self._self_test_failures.inc(not passed)

    def watch_readiness(self, readiness: Readiness) -> None:
        """Show whether the worker takes messages, and what it does, at every scrape from now on."""

        def collect() -> Iterable[Metric]:
            yield _gauge(
                "ready",
                "1 if the worker takes messages and stores outcomes; if 0, /readyz says why not.",
                {(): readiness.not_ready_reason() is None},
            )
            state = readiness.state
            yield _gauge(
                "state",
                "1 for what the worker is doing, 0 for the other states.",
                {(each,): each is state for each in State},
                "state",
            )

        self.registry.register(OnScrape(collect))

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
                "Seconds since the engine last finished a step; 0 while it has nothing to do.",
                {(): stalled_seconds()},
            )
            yield from _checkpoint(evaluator, self._loaded)
            if self._tested is not None:
                solved, pairs = self._tested
                yield _gauge(
                    "self_test_solved_ratio",
                    "Share of the known pairs that the last self-test solved, of 1.",
                    {(): solved / pairs},
                )
            yield from _device(evaluator, memory())

        self.registry.register(OnScrape(collect))


def _build() -> Iterable[Metric]:
    """The metric of what runs here. Reads versions without loading torch."""
    labels = _version("sqe-hrm-worker"), platform.python_version(), _version("torch")
    names = "version", "python", "torch"
    yield _gauge("build_info", "1; its labels are the versions of what runs.", {labels: 1}, *names)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"


def _device(evaluator: Evaluator, used: Mapping[str, int]) -> Iterable[Metric]:
    """The metrics of what computes."""
    device = evaluator.device
    yield _gauge(
        "device_info", "1; its label is the device that computes.", {(device,): 1}, "device"
    )
    yield _gauge(
        "engine_info",
        "1; its labels are the rule that ends a message's computation, and the numbers' format.",
        {(str(evaluator.halting), evaluator.dtype): 1},
        *("halting", "dtype"),
    )
    if used:
        yield _gauge(
            "device_memory_bytes",
            "Bytes of the GPU's memory: in use, reserved by this process, and in total.",
            {(device, kind): float(size) for kind, size in used.items()},
            *("device", "kind"),
        )


def _checkpoint(evaluator: Evaluator, loaded: float) -> Iterable[Metric]:
    """The metrics of the checkpoint that serves, and what its live figures are compared with."""
    checkpoint = evaluator.checkpoint
    name = checkpoint.name
    yield _gauge(
        "checkpoint_info",
        "1; its labels are the checkpoint that serves.",
        {(name, checkpoint.digest): 1},
        *("checkpoint", "digest"),
    )
    yield _gauge(
        "checkpoint_loaded_timestamp_seconds",
        "Unix time since which the checkpoint serves.",
        {(name,): loaded},
        "checkpoint",
    )
    trained = evaluator.trained_on
    if trained is not None:
        midnight = datetime.combine(trained, datetime.min.time(), UTC)
        yield _gauge(
            "checkpoint_trained_timestamp_seconds",
            "Unix time of the day on which the checkpoint was trained; absent if not recorded.",
            {(name,): midnight.timestamp()},
            "checkpoint",
        )
    rate = evaluator.recorded_rate
    yield _gauge(
        "checkpoint_has_baseline",
        "1 if the checkpoint's solve rate under this halting rule is recorded. 0 if no alert can "
        "compare live figures with it: without sqe-hrm checkpoint record, with another "
        "--max-steps, and for ensembles.",
        {(name,): rate is not None},
        "checkpoint",
    )
    if rate is not None:
        yield _gauge(
            "checkpoint_baseline_solved_ratio",
            "Share of its accepted pairs that the checkpoint solved when it was measured under "
            "this halting rule, of 1, and the ends of its 95 % Wilson interval.",
            {(name, bound): value for bound, value in zip(BOUNDS, rate, strict=True)},
            *("checkpoint", "bound"),
        )
    tokens = evaluator.training_tokens
    if tokens:
        yield _gauge(
            "checkpoint_training_token_ratio",
            "Share of the token in the completions that the checkpoint was trained on, of 1.",
            {(name, token): share for token, share in tokens.items()},
            *("checkpoint", "token"),
        )


def _engine(evaluator: Evaluator, *, cached: bool) -> Iterable[Metric]:
    """The metrics of the evaluator's engine, all from one snapshot of it."""
    now = evaluator.statistics
    yield _gauge(
        "engine_slots",
        "Messages that the engine can compute at once. More are busy than there are while live "
        "messages use those in reserve.",
        {("busy",): now.busy_slots, ("free",): max(0, now.slots - now.busy_slots)},
        "state",
    )
    yield _gauge(
        "engine_waiting", "Messages in the engine that have no slot yet.", {(): now.waiting}
    )
    counts = {
        "engine_steps": (now.steps, "ACT steps that the engine computed, each for some slots."),
        "engine_occupied_slots": (
            now.occupied,
            "Slots that an ACT step was for, summed over the steps.",
        ),
        "engine_refills": (now.refills, "Messages that took a slot beside others in work."),
        "engine_busy_seconds": (now.busy_seconds, "Seconds that the engine's steps took."),
        "engine_slot_reductions": (
            now.slot_reductions,
            "Times that the engine went on with fewer slots because memory ran out.",
        ),
    }
    for name, (count, text) in counts.items():
        yield _counter(name, text, {(): count})
    if cached:
        asked: dict[tuple[str, ...], float] = {
            ("hit",): now.cache_hits,
            ("miss",): now.cache_misses,
        }
        yield _counter(
            "prediction_cache",
            "Predictions that were looked up in the cache of equal prompts.",
            asked,
            "result",
        )
