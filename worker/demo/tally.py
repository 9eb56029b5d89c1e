"""Counts and times of a demo run, and whether they add up.

Knows outcomes; nothing of how they are shown.
"""

import statistics
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from hrm.data.changes import ChangeKind
from schemas import FailurePattern, Rejection, RejectionReason, TextCheck, Verdict
from worker.demo.traffic import CHANGES, Kind, Sent

RECENT_SECONDS = 5.0
"""Period over which the present throughput is measured."""

LATENCIES = 10_000
"""Latest times kept for percentiles; bounds the memory of an endless run."""


@dataclass
class Tally:
    """Counts and times of one run."""

    sent: Counter[Kind | ChangeKind] = field(default_factory=Counter)
    verdicts: Counter[Kind | ChangeKind] = field(default_factory=Counter)
    solved: Counter[Kind | ChangeKind] = field(default_factory=Counter)
    texts: Counter[tuple[Kind | ChangeKind, TextCheck]] = field(default_factory=Counter)
    patterns: Counter[FailurePattern] = field(default_factory=Counter)
    rejections: Counter[RejectionReason] = field(default_factory=Counter)
    mistaken: int = 0
    """Malformed messages that were evaluated, and sound messages that were refused."""
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))
    """Seconds from enqueueing to the verdict."""
    inference: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))
    """Seconds in the engine."""
    started: float = field(default_factory=time.monotonic)
    last_answer: float = field(default_factory=time.monotonic)
    _recent: deque[float] = field(default_factory=deque)

    def note_sent(self, sent: Sent) -> None:
        """Count a message that was sent."""
        self.sent[sent.kind] += 1

    def note_outcome(self, sent: Sent, outcome: Verdict | Rejection) -> None:
        """Count the outcome of a message."""
        self.last_answer = time.monotonic()
        self._recent.append(self.last_answer)
        if isinstance(outcome, Rejection):
            self.rejections[outcome.reason] += 1
            self.mistaken += sent.kind is not Kind.MALFORMED
            return
        self.mistaken += sent.kind is Kind.MALFORMED
        self.verdicts[sent.kind] += 1
        self.solved[sent.kind] += outcome.solved
        self.texts[sent.kind, outcome.text] += 1
        if outcome.failure_pattern is not None:
            self.patterns[outcome.failure_pattern] += 1
        self.latencies.append(outcome.timings.total)
        self.inference.append(outcome.timings.inference)

    @property
    def answered(self) -> int:
        """Number of messages with an outcome."""
        return self.verdicts.total() + self.rejections.total()

    @property
    def rate(self) -> float:
        """Outcomes per second from the start to the last outcome."""
        return self.answered / max(self.last_answer - self.started, 1e-9)

    @property
    def recent_rate(self) -> float:
        """Outcomes per second over the last `RECENT_SECONDS`."""
        now = time.monotonic()
        while self._recent and self._recent[0] <= now - RECENT_SECONDS:
            self._recent.popleft()
        return len(self._recent) / max(min(RECENT_SECONDS, now - self.started), 1e-9)

    def solve_rate(self, *kinds: Kind | ChangeKind) -> tuple[int, int]:
        """Numbers of solved and of evaluated messages of these kinds."""
        return sum(self.solved[kind] for kind in kinds), sum(self.verdicts[kind] for kind in kinds)

    @property
    def missed(self) -> tuple[int, int]:
        """Numbers of solved and of evaluated messages that were changed."""
        return self.solve_rate(*CHANGES)

    def missed_by_text(self, kind: ChangeKind) -> tuple[int, int]:
        """Numbers of messages with this change that pass the text check, and that it could check.

        A checkpoint without hashes of its accepted texts leaves nothing to check.
        """
        missed = self.texts[kind, TextCheck.SAME] + self.texts[kind, TextCheck.NORMALISED]
        return missed, missed + self.texts[kind, TextCheck.DIFFERENT]


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Interpolate a percentile linearly; None without values."""
    if not values:
        return None
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True)
class Account:
    """The counts of the agent, the worker, the monitor and the dead-letter stream."""

    sent: int
    verdicts: int
    dead_letters: int
    evaluations_total: int
    """From the worker's /metrics."""
    of_agents: int
    """From the monitor's /metrics."""
    rejected_total: int
    """From the worker's /metrics."""
    stream_length: int
    """Entries that this run added to the dead-letter stream."""
    mistaken: int

    @property
    def adds_up(self) -> bool:
        """Whether every message has one outcome and all counts agree."""
        return (
            self.sent == self.verdicts + self.dead_letters
            and self.verdicts == self.evaluations_total == self.of_agents
            and self.dead_letters == self.rejected_total == self.stream_length
            and self.mistaken == 0
        )
