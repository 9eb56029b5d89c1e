"""The metrics of the monitor: what the latest reading of Redis says, and what became of canaries.

A scrape never waits for Redis: it gets the latest reading, if that is young enough. Label values
come from fixed lists, except the agents', of which there are at most `MOST_AGENTS`.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics_core import Metric

from worker.broker.backlog import READY, UNACKED
from worker.monitor.reading import AgentFigure, Reading
from worker.telemetry.families import LONG_SECONDS, PREFIX, OnScrape, counter, gauge


class CanaryOutcome(StrEnum):
    """The values of the label `outcome` of `canary_total`."""

    SOLVED = "solved"
    """The answer is right, and came in time."""
    UNSOLVED = "unsolved"
    """The answer is wrong, although the serving checkpoint solves the message: by its record, or it
    did so before."""
    UNPROVEN = "unproven"
    """The answer is wrong, and it is not known that the serving checkpoint ever solved it."""
    UNKNOWN = "unknown"
    """The serving checkpoint was not trained on the message: it is of another file."""
    REFUSED = "refused"
    """It became a dead letter."""
    LATE = "late"
    """There is no answer yet; counted again for each canary that is not sent because of that."""
    UNSENT = "unsent"
    """Redis did not take it, or could not be asked for its outcome."""


class Figures:
    """The metrics of one monitor. Threads share one object.

    Args:
        read: Returns the latest reading at once; None if Redis has not answered for a while.
    """

    def __init__(self, read: Callable[[], Reading | None]) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._canaries = Counter(
            f"{PREFIX}_canary_total",
            "Messages with a known answer that the monitor sent through the live queue.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in CanaryOutcome:
            self._canaries.labels(outcome)
        self._canary_seconds = Histogram(
            f"{PREFIX}_canary_seconds",
            "Seconds from sending a canary to its outcome.",
            buckets=LONG_SECONDS,
            registry=self.registry,
        )
        self._read = read
        self.registry.register(OnScrape(self._collect))

    def canary(self, outcome: CanaryOutcome, seconds: float | None = None) -> None:
        """Count what became of a canary, and the seconds until its outcome, if it has one."""
        self._canaries.labels(outcome).inc()
        if seconds is not None:
            self._canary_seconds.observe(seconds)

    def _collect(self) -> Iterable[Metric]:
        reading = self._read()
        yield gauge(
            "redis_up",
            "1 if Redis has answered within the last ten seconds, otherwise 0.",
            {(): reading is not None},
        )
        if reading is not None:
            yield from _families(reading)


def _families(reading: Reading) -> Iterable[Metric]:
    """The metrics of one reading."""
    counts = {READY: reading.ready, UNACKED: reading.unacked}
    yield gauge(
        "queue_messages",
        "Messages that wait, and messages that workers have and have not acknowledged.",
        {
            (queue, state): float(count)
            for state, by_queue in counts.items()
            for queue, count in by_queue.items()
        },
        *("queue", "state"),
    )
    yield gauge(
        "queue_oldest_seconds",
        "Seconds for which the message that is taken next has waited; 0 if none waits.",
        _by_name(reading.oldest),
        "queue",
    )
    yield gauge(
        "unacked_stalest_seconds",
        "Seconds since the oldest renewal of a message that a worker has; 0 without any.",
        _by_name(reading.stalest),
        "queue",
    )
    streams = reading.streams
    yield gauge(
        "stream_entries",
        "Entries that the stream keeps.",
        {(name,): float(stream.entries) for name, stream in streams.items()},
        "stream",
    )
    yield gauge(
        "stream_oldest_seconds",
        "Seconds since the oldest entry was added: how far back the stream reaches.",
        {(name,): stream.oldest_seconds for name, stream in streams.items()},
        "stream",
    )
    yield gauge(
        "stream_bytes",
        "Bytes of the fields of the entries that the stream keeps.",
        {(name,): float(count) for name, count in reading.stream_bytes.items()},
        "stream",
    )
    if reading.left_out is not None:
        yield counter(
            "failures_left_out",
            "Failures that the stream did not keep: their agent and pattern had their share.",
            {(): float(reading.left_out)},
        )
    yield counter(
        "stream_added",
        "Entries that were ever added to the stream.",
        {(name,): float(stream.added) for name, stream in streams.items()},
        "stream",
    )
    if reading.memory_used is not None and reading.memory_max is not None:
        yield gauge(
            "redis_memory_used_bytes", "Memory of Redis in bytes.", {(): reading.memory_used}
        )
        yield gauge(
            "redis_memory_max_bytes",
            "Limit of Redis's memory in bytes; 0 for none.",
            {(): reading.memory_max},
        )
    yield counter(
        "agent_evaluations",
        "Live messages that the whole fleet has evaluated, each counted once. Agents beyond the "
        "first hundred are together `other`.",
        _with_zeros(reading.agents),
        *("agent", "category", "known", "outcome"),
    )


def _with_zeros(agents: Mapping[AgentFigure, int]) -> dict[tuple[str, ...], float]:
    """The figures of agents, both outcomes of each, so that the first failure is an increase."""
    figures: dict[tuple[str, ...], float] = {
        (*labels, outcome): 0.0 for *labels, _ in agents for outcome in ("solved", "unsolved")
    }
    return figures | {labels: float(count) for labels, count in agents.items()}


def _by_name(values: dict[str, float]) -> dict[tuple[str, ...], float]:
    return {(name,): value for name, value in values.items()}
