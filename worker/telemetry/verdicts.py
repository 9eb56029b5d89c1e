"""The metrics of evaluated messages, counted for many verdicts at once.

A worker on a GPU counts ten thousand verdicts a second. So they gather until there are many, or
until somebody reads the metrics. Then a series changes once for all verdicts of a kind, and for
each of them only a few operations in C are left.

Knows verdicts and numbers. Label values come from fixed lists: never a message's text, never an id.
"""

import itertools
import math
import threading
from collections import Counter as Counts
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import Metric

from schemas import Category, Difficulty, FailurePattern, PromptMatch, TextCheck, Timings, Verdict
from worker.evaluator import Evaluator
from worker.telemetry.families import Distribution, OnScrape
from worker.telemetry.labels import BOOLEANS, OUTCOMES, Lane
from worker.telemetry.verdict_families import VerdictFamilies

KEPT_CHECKPOINTS = 2
"""Checkpoints to show in counters: the one that serves, and the one before, of which the last
messages may not have been scraped yet. Series of every one there ever was would only grow."""

AT_ONCE = 256
"""Verdicts to count together. Alone, each would cost ten times as much."""

KINDS = 1024
"""Kinds of verdicts whose counters are kept at hand, since finding them takes longer than counting.
Few of all combinations of labels occur."""

_Kind = tuple[bool, Difficulty, Category, TextCheck, PromptMatch, FailurePattern | None]
"""The fields behind the labels of a verdict's counters, beside checkpoint, lane and `known`."""


class Evaluation(NamedTuple):
    """A message that was evaluated and stored, and is counted now."""

    verdict: Verdict
    lane: Lane
    confusions: Mapping[tuple[str, str], int]
    """How often each pair (target, predicted) of different tokens occurred, by their names."""
    completion: Sequence[int]
    """The completion's tokens."""


@dataclass(frozen=True, slots=True)
class _Series:
    """The series of verdicts of one checkpoint, lane and kind of prompts."""

    token_accuracy: Distribution
    edit_similarity: Distribution
    act_steps: Distribution
    queue: Distribution
    inference: Distribution
    end_to_end: Distribution
    q_halt_correct: Counter
    truncated: Counter
    unread_words: Counter


class VerdictFigures:
    """The metrics of evaluated messages. Threads share one object.

    Args:
        registry: Shows them.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        # Registered first, so that it runs first.
        registry.register(OnScrape(self._on_scrape))
        self._gathered: deque[Evaluation] = deque()
        """Verdicts that are not counted yet."""
        self._lock = threading.RLock()
        self._counters_of = lru_cache(maxsize=KINDS)(self._find_counters)
        self._series_of = lru_cache(maxsize=KINDS)(self._find_series)
        self._checkpoints: list[str] = []
        """Names of the checkpoints in counters, the one that serves last."""
        self._token_names: dict[str, Sequence[str]] = {}
        """The name of each token, by checkpoint."""
        self._families = VerdictFamilies(registry)
        self._q_halt_of = {
            solved: self._families.q_halt.labels(_outcome(solved)) for solved in (True, False)
        }

    def serves(self, evaluator: Evaluator) -> None:
        """Note the checkpoint that serves from now on, and forget those long gone.

        Its series start at 0, so that the first message shows as an increase. Those of canaries do
        not: their labels are the operator's choice, and few.
        """
        name, tokens = evaluator.checkpoint.name, tuple(dict.fromkeys(evaluator.token_names))
        self._count_gathered()
        self._keep(name, serves=True)
        self._token_names[name] = evaluator.token_names
        for family, values in self._families.of_checkpoints.items():
            for labels in itertools.product(*values):
                family.labels(name, *labels)
        for token in tokens:
            self._families.tokens.labels(name, token)
        for target, predicted in itertools.permutations(tokens, 2):
            self._families.confusions.labels(target, predicted)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Count a message that was evaluated."""
        self._gathered.append(evaluation)
        if len(self._gathered) >= AT_ONCE:
            self._count_gathered()

    def _on_scrape(self) -> Iterable[Metric]:
        self._count_gathered()
        return ()

    def _count_gathered(self) -> None:
        """Count the verdicts that have gathered, by checkpoint, lane and kind of prompts."""
        groups: defaultdict[tuple[str, Lane, bool], list[Evaluation]] = defaultdict(list)
        with self._lock:
            for _ in range(len(self._gathered)):
                each = self._gathered.popleft()
                verdict = each.verdict
                groups[verdict.checkpoint, each.lane, verdict.known].append(each)
            for (checkpoint, lane, known), group in groups.items():
                self._count(checkpoint, lane, known, group)

    def _count(
        self,
        checkpoint: str,
        lane: Lane,
        known: bool,  # noqa: FBT001
        group: Sequence[Evaluation],
    ) -> None:
        if checkpoint not in self._checkpoints:
            self._keep(checkpoint, serves=False)
        verdicts = [each.verdict for each in group]
        if lane is Lane.CANARY:
            self._count_canaries(checkpoint, verdicts)
            return
        kinds = Counts(
            [
                (v.solved, v.difficulty, v.category, v.text, v.match, v.failure_pattern)
                for v in verdicts
            ]
        )
        for kind, count in kinds.items():
            for each in self._counters_of(checkpoint, lane, known, kind):
                each.inc(count)
        series = self._series_of(checkpoint, lane, known)
        series.token_accuracy.observe_all([v.token_accuracy for v in verdicts])
        series.edit_similarity.observe_all([v.edit_similarity for v in verdicts])
        series.act_steps.observe_all([v.act_steps for v in verdicts])
        series.q_halt_correct.inc(sum([v.q_right for v in verdicts]))
        if unread := [v.unread_words for v in verdicts if v.unread_words]:
            series.truncated.inc(len(unread))
            series.unread_words.inc(sum(unread))
        self._count_times(series, [v.timings for v in verdicts])
        if lane is Lane.LIVE:
            self._count_live(checkpoint, known, group)

    def _count_canaries(self, checkpoint: str, verdicts: Sequence[Verdict]) -> None:
        if checkpoint != self._checkpoints[-1]:
            return
        for v in verdicts:
            kind = _outcome(v.solved), _text(v.known), v.difficulty, v.category
            self._families.evaluations.labels(checkpoint, Lane.CANARY, *kind).inc()

    def _count_times(self, series: _Series, timings: Sequence[Timings]) -> None:
        self._families.convert.observe_all([t.convert for t in timings])
        series.inference.observe_all([t.inference for t in timings])
        queued = [t.queue for t in timings if t.queue is not None]
        if queued:
            series.queue.observe_all(queued)
            series.end_to_end.observe_all([t.total for t in timings if t.queue is not None])

    def _count_live(
        self,
        checkpoint: str,
        known: bool,  # noqa: FBT001
        group: Sequence[Evaluation],
    ) -> None:
        """Count what only live messages are counted for."""
        for solved in (True, False):
            logits = [e.verdict.q_halt for e in group if e.verdict.solved is solved]
            if logits:
                self._q_halt_of[solved].observe_all(list(map(_chance, logits)))
        if known:
            for each in group:
                for pair, count in each.confusions.items():
                    self._families.confusions.labels(*pair).inc(count)
        if names := self._token_names.get(checkpoint):
            tokens: Counts[str] = Counts()
            counts = _token_counts([e.completion for e in group], len(names))
            for token, count in counts.items():
                tokens[names[token]] += count
            for name, count in tokens.items():
                self._families.tokens.labels(checkpoint, name).inc(count)

    def _find_counters(
        self,
        checkpoint: str,
        lane: Lane,
        known: bool,  # noqa: FBT001 - positions are what the cache compares fastest
        kind: _Kind,
    ) -> tuple[Counter, ...]:
        """Find the counters that count verdicts of one kind."""
        solved, difficulty, category, text, match, pattern = kind
        of, is_solved, is_known = (checkpoint, lane), _text(solved), _text(known)
        families, outcome = self._families, _outcome(solved)
        found = (
            families.evaluations.labels(*of, outcome, is_known, difficulty, category),
            families.text_checks.labels(*of, text, is_solved),
            families.matches.labels(*of, match, is_solved),
        )
        if pattern is None:
            return found
        return (*found, families.failures.labels(*of, is_known, pattern))

    def _find_series(self, checkpoint: str, lane: Lane, known: bool) -> _Series:  # noqa: FBT001
        return _Series(
            self._families.token_accuracy.labels(checkpoint, lane, _text(known)),
            self._families.edit_similarity.labels(checkpoint, lane, _text(known)),
            self._families.act_steps.labels(checkpoint, lane),
            self._families.queue.labels(lane.queue),
            self._families.inference.labels(lane.queue),
            self._families.end_to_end.labels(lane.queue),
            self._families.q_halt_correct.labels(lane),
            self._families.truncated.labels(lane),
            self._families.unread_words.labels(lane),
        )

    def _keep(self, checkpoint: str, *, serves: bool) -> None:
        """Show a checkpoint, and beside it only the one that serves, or else the one before."""
        with self._lock:
            others = [name for name in self._checkpoints if name != checkpoint]
            kept = others[1 - KEPT_CHECKPOINTS :]
            self._checkpoints = [*kept, checkpoint] if serves else [checkpoint, *kept]
            for name in set(others) - set(kept):
                self._token_names.pop(name, None)
                for family in (*self._families.of_checkpoints, self._families.tokens):
                    family.remove_by_labels({"checkpoint": name})
            for name in self._checkpoints[:-1]:
                # Nobody misses the canaries that an earlier checkpoint answered.
                self._families.evaluations.remove_by_labels(
                    {"checkpoint": name, "lane": Lane.CANARY}
                )
            # They hold series that are shown no more.
            self._counters_of.cache_clear()
            self._series_of.cache_clear()


def _token_counts(completions: Sequence[Sequence[int]], tokens: int) -> Mapping[int, int]:
    """Count each token in completions. Done one by one, this was half of what a verdict costs."""
    try:
        joined = b"".join(map(bytes, completions))
    except ValueError:  # conversion 2 has more tokens than a byte
        counts = Counts(itertools.chain.from_iterable(completions))
        # A checkpoint that was trained anew under its name may have fewer than it had.
        return {token: count for token, count in counts.items() if token < tokens}
    return {token: joined.count(token) for token in range(min(tokens, 256))}


def _outcome(solved: bool) -> str:  # noqa: FBT001
    return OUTCOMES[0] if solved else OUTCOMES[1]


def _text(value: bool) -> str:  # noqa: FBT001
    return BOOLEANS[0] if value else BOOLEANS[1]


def _chance(logit: float) -> float:
    """The sigmoid of a logit, however large or small it is."""
    return 0.5 + 0.5 * math.tanh(0.5 * logit)
