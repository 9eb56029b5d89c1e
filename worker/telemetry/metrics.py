"""Every Prometheus metric of a worker, by name.

Knows verdicts and numbers. Label values come from fixed lists only: never a message's text, never
an id. Each process has one `Metrics` object, with a registry of its own.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import lru_cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics_core import Metric

from schemas import Category, Difficulty, PromptMatch, RejectionReason, TextCheck, Verdict
from worker.evaluator import Evaluator
from worker.telemetry.families import LONG_SECONDS, PREFIX, OnScrape
from worker.telemetry.families import counter as _counter
from worker.telemetry.families import gauge as _gauge

WINDOW = 1000
"""Number of latest verdicts behind the solve rate; one verdict changes it by 0.1 %."""

KINDS = 1024
"""Kinds of verdicts whose counters are kept at hand, since finding them takes longer than counting.
Few of all combinations of labels occur."""

_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Bucket limits of shares, finer towards 1, where an agent starts to drift."""

_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Bucket limits in ACT steps; published checkpoints stop at 8 or 16."""

_SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
"""Bucket limits in seconds for the work on one text."""


DeviceMemory = Callable[[], dict[str, int]]
"""Function that reads the bytes by kind; empty if the device has no memory of its own."""


class ErrorKind(StrEnum):
    """The values of the label `kind` of `errors_total`."""

    EVALUATION = "evaluation"
    """The model gave no finite answer."""
    INTERNAL = "internal"
    """An unforeseen error; the log has its traceback."""
    REDIS = "redis"
    """Redis did not accept an outcome; the worker tried again."""


class Lane(StrEnum):
    """The values of the label `lane` of `evaluations_total`."""

    LIVE = "live"
    """From an agent at work."""
    BACKFILL = "backfill"
    """From a file."""
    CANARY = "canary"
    """From the monitor, with a known answer. No other metric of evaluations counts it."""


class Reload(StrEnum):
    """The values of the label `result` of `reloads_total`: how a request to reload ended."""

    RELOADED = "reloaded"
    """Another checkpoint serves."""
    ALREADY_SERVING = "already_serving"
    """The checkpoint that is named has the digest of the one that serves."""
    REFUSED = "refused"
    """The checkpoint cannot be used; the one before serves on."""


KEPT_CHECKPOINTS = 2
"""Checkpoints to show in counters: the one that serves, and the one before, of which the last
messages may not have been scraped yet. Series of every one there ever was would only grow."""

LIVE_LABELS = [
    (Lane.LIVE, outcome, known, difficulty, category)
    for outcome in ("solved", "unsolved")
    for known in ("true", "false")
    for difficulty in Difficulty
    for category in Category
]
"""Labels of all counters of live evaluations of a checkpoint."""

BOUNDS = ("low", "rate", "high")
"""The values of the label `bound`, in the order of `Evaluator.recorded_rate`."""


class Metrics:
    """The metrics of one worker process. Threads share one object."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._window: deque[bool] = deque(maxlen=WINDOW)
        self._lock = threading.Lock()
        self._counters_of = lru_cache(maxsize=KINDS)(self._find_counters)
        self._checkpoints: list[str] = []
        """Names of the checkpoints in counters, the one that serves last."""
        self._tested: tuple[int, int] | None = None
        """Solved pairs and pairs of the last self-test."""

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(
                f"{PREFIX}_{name}", text, buckets=tuple(buckets), registry=self.registry
            )

        self._evaluations = counter(
            "evaluations_total",
            "Messages evaluated, each counted once.",
            *("checkpoint", "lane", "outcome", "known", "difficulty", "category"),
        )
        self._failures = counter("failures_total", "Unsolved messages.", "pattern", "category")
        self._text_checks = counter(
            "text_checks_total",
            "Completions compared with the accepted ones, and whether the model solved them.",
            *("text", "solved"),
        )
        self._matches = counter(
            "prompt_matches_total",
            "Prompts by how training knows them, and whether the model solved them.",
            *("match", "solved"),
        )
        self._truncated = counter(
            "truncated_total", "Messages with words that the model does not read."
        )
        self._unread_words = counter("unread_words_total", "Words that the model does not read.")
        self._confusions = counter("token_confusions_total", "Wrong tokens.", "target", "predicted")
        self._rejected = counter("rejected_total", "Dead letters.", "reason")
        self._duplicates = counter("duplicates_total", "Messages answered again and not counted.")
        self._errors = counter("errors_total", "Errors of this worker.", "kind")
        self._reloads = counter("reloads_total", "Requests for another checkpoint.", "result")
        self._self_test_failures = counter(
            "self_test_failures_total", "Self-tests in which too few known pairs were solved."
        )
        self._q_halt_correct = counter(
            "q_halt_correct_total", "Messages whose last q_halt has the sign of their outcome."
        )
        self._token_accuracy = histogram("token_accuracy", "Right tokens by position.", _SHARES)
        self._edit_similarity = histogram(
            "edit_similarity", "1 - Levenshtein distance / target length.", _SHARES
        )
        self._act_steps = histogram("act_steps", "ACT steps of a message.", _STEPS)
        self._queue = histogram("queue_seconds", "Enqueued until taken.", LONG_SECONDS)
        self._convert = histogram("convert_seconds", "Validation and conversion.", _SHORT)
        self._inference = histogram("inference_seconds", "In the engine.", LONG_SECONDS)
        self._end_to_end = histogram(
            "end_to_end_seconds", "Enqueued until the verdict.", LONG_SECONDS
        )
        # They start at 0, so that the first one shows as an increase.
        for reason in RejectionReason:
            self._rejected.labels(reason)
        for kind in ErrorKind:
            self._errors.labels(kind)
        for result in Reload:
            self._reloads.labels(result)
        for text in TextCheck:
            for solved in ("true", "false"):
                self._text_checks.labels(text, solved)
        for match in PromptMatch:
            for solved in ("true", "false"):
                self._matches.labels(match, solved)

    def evaluated(
        self,
        verdict: Verdict,
        confusions: Mapping[tuple[str, str], int],
        lane: Lane = Lane.LIVE,
    ) -> None:
        """Count a verdict; `confusions` counts its wrong tokens by (target, predicted)."""
        for each in self._counters_of_verdict(verdict, lane):
            each.inc()
        if verdict.unread_words:
            self._truncated.inc()
            self._unread_words.inc(verdict.unread_words)
        if verdict.failure_pattern is not None:
            self._failures.labels(verdict.failure_pattern, verdict.category).inc()
        for (target, predicted), count in confusions.items():
            self._confusions.labels(target, predicted).inc(count)
        if verdict.q_right:
            self._q_halt_correct.inc()
        self._token_accuracy.observe(verdict.token_accuracy)
        self._edit_similarity.observe(verdict.edit_similarity)
        self._act_steps.observe(verdict.act_steps)
        if verdict.timings.queue is not None:
            self._queue.observe(verdict.timings.queue)
        self._convert.observe(verdict.timings.convert)
        self._inference.observe(verdict.timings.inference)
        self._end_to_end.observe(verdict.timings.total)
        with self._lock:
            self._window.append(verdict.solved)

    def _counters_of_verdict(self, verdict: Verdict, lane: Lane) -> tuple[Counter, ...]:
        """Look up the counters of `verdict`, the one of evaluations first."""
        return self._counters_of(
            verdict.checkpoint,
            lane,
            verdict.solved,
            verdict.known,
            verdict.difficulty,
            verdict.category,
            verdict.text,
            verdict.match,
        )

    def canary(self, verdict: Verdict) -> None:
        """Count a verdict of the monitor's own message."""
        evaluations, *_ = self._counters_of_verdict(verdict, Lane.CANARY)
        evaluations.inc()

    def _find_counters(
        self,
        checkpoint: str,
        lane: Lane,
        solved: bool,  # noqa: FBT001 - positions are what the cache compares fastest
        known: bool,  # noqa: FBT001
        difficulty: Difficulty,
        category: Category,
        text: TextCheck,
        match: PromptMatch,
    ) -> tuple[Counter, ...]:
        """Find the counters that count verdicts of one kind."""
        outcome, is_solved = "solved" if solved else "unsolved", str(solved).lower()
        return (
            self._evaluations.labels(
                checkpoint, lane, outcome, str(known).lower(), difficulty, category
            ),
            self._text_checks.labels(text, is_solved),
            self._matches.labels(match, is_solved),
        )

    def rejected(self, reason: RejectionReason) -> None:
        """Count a dead letter."""
        self._rejected.labels(reason).inc()

    def duplicate(self) -> None:
        """Count a message that was answered again, and not counted again."""
        self._duplicates.inc()

    def error(self, kind: ErrorKind) -> None:
        """Count an error."""
        self._errors.labels(kind).inc()

    def serves(self, checkpoint: str) -> None:
        """Note the name of the checkpoint that serves from now on, and forget those long gone.

        Its counters of live messages start at 0, so that the first one shows as an increase.
        """
        kept = [name for name in self._checkpoints if name != checkpoint]
        self._checkpoints = [*kept[1 - KEPT_CHECKPOINTS :], checkpoint]
        for name in set(kept) - set(self._checkpoints):
            self._evaluations.remove_by_labels({"checkpoint": name})
        # It holds counters that are shown no more.
        self._counters_of.cache_clear()
        for labels in LIVE_LABELS:
            self._evaluations.labels(checkpoint, *labels)

    def reload(self, result: Reload) -> None:
        """Count a request for another checkpoint by its result."""
        self._reloads.labels(result).inc()

    def self_tested(self, solved: int, pairs: int, *, passed: bool) -> None:
        """Show the result of a self-test."""
        self._tested = solved, pairs
        self._self_test_failures.inc(not passed)

    def solve_rate(self) -> float | None:
        """Compute the share of solved messages among the latest; None before the first."""
        with self._lock:
            return sum(self._window) / len(self._window) if self._window else None

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
            rate = self.solve_rate()
            if rate is not None:
                yield _gauge("solve_rate", f"Solved of the last {WINDOW}.", {(): rate})
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
