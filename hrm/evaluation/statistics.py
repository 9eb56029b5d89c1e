"""Statistics of streams of numbers, in constant memory.

Knows numbers, and nothing of what they measure.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

Z_95 = 1.959963984540054
"""Standard deviations around the mean that hold 95 % of a normal distribution."""

_BUCKET_RATIO = 1.05
"""Ratio of consecutive buckets of a `PositiveHistogram`: medians are exact within 2.5 %."""

_SMALLEST = 1e-9
"""Smaller values count as this one: a nanosecond, if the values are seconds."""


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, 1927); 0 to 1 without any trial.

    Unlike the usual normal approximation, it holds for few trials and for shares near 0 and 1.
    """
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, Z_95**2
    centre = share + z2 / (2 * trials)
    margin = Z_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    scale = 1 + z2 / trials
    # At the ends the formula gives exactly 0 and 1; its rounding does not.
    low = 0.0 if successes == 0 else (centre - margin) / scale
    high = 1.0 if successes == trials else (centre + margin) / scale
    return low, high


class Share(BaseModel):
    """`count` of `of` trials. The share is null if there was no trial."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    of: int
    share: float | None
    low: float | None = Field(
        description="Lower end of the 95 % Wilson interval. Null if there was no trial, or if "
        "everything there is was counted, so that there is nothing to estimate."
    )
    high: float | None = Field(description="Upper end of the interval; null if `low` is.")

    @classmethod
    def measured(cls, count: int, of: int) -> Self:
        """The share of `count` successes in `of` independent trials."""
        if of == 0:
            return cls(count=0, of=0, share=None, low=None, high=None)
        low, high = wilson_interval(count, of)
        return cls(count=count, of=of, share=count / of, low=low, high=high)

    @classmethod
    def counted(cls, count: int, of: int) -> Self:
        """The share of `count` in `of` that are everything there is: without an interval."""
        return cls(count=count, of=of, share=count / of if of else None, low=None, high=None)


ShareOf = Callable[[int, int], Share]
"""States a count of a total as a share: `Share.measured` or `Share.counted`."""


class Summary(BaseModel):
    """Mean, spread and range of values; all null if there was no value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float | None = None
    spread: float | None = Field(default=None, description="Standard deviation of these values.")
    min: float | None = None
    max: float | None = None


class MedianSummary(Summary):
    """A summary with the median."""

    median: float | None = None


class RunningStatistics:
    """Mean, spread and range of any finite numbers (Welford, 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = 0.0
        self._squares = 0.0
        self._min = math.inf
        self._max = -math.inf

    def add(self, value: float) -> None:
        """Count one value."""
        self.count += 1
        difference = value - self._mean
        self._mean += difference / self.count
        self._squares += difference * (value - self._mean)
        self._min = min(self._min, value)
        self._max = max(self._max, value)

    def summary(self) -> Summary:
        """The summary of all values so far."""
        if not self.count:
            return Summary()
        return Summary(
            # Rounding may move the mean of equal values slightly past them.
            mean=min(max(self._mean, self._min), self._max),
            spread=math.sqrt(self._squares / self.count),
            min=self._min,
            max=self._max,
        )


class IntegerHistogram:
    """Exact statistics of integers with few different values, such as steps."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, value: int) -> None:
        """Count one value."""
        self.counts[value] += 1

    def summary(self) -> MedianSummary:
        """The summary of all values so far. The median of an even number lies between two."""
        total = self.counts.total()
        if not total:
            return MedianSummary()
        mean = sum(value * count for value, count in self.counts.items()) / total
        squares = sum((value - mean) ** 2 * count for value, count in self.counts.items())
        middle = (_ranked(self.counts, (total - 1) // 2) + _ranked(self.counts, total // 2)) / 2
        return MedianSummary(
            mean=mean,
            spread=math.sqrt(squares / total),
            min=min(self.counts),
            max=max(self.counts),
            median=middle,
        )


class PositiveHistogram:
    """Statistics of positive numbers, such as seconds: exact, except the median (within 2.5 %)."""

    def __init__(self) -> None:
        self._running = RunningStatistics()
        self._buckets: Counter[int] = Counter()

    def add(self, value: float) -> None:
        """Count one value."""
        self._running.add(value)
        self._buckets[math.floor(math.log(max(value, _SMALLEST), _BUCKET_RATIO))] += 1

    def summary(self) -> MedianSummary:
        """The summary of all values so far."""
        summary = self._running.summary()
        if summary.min is None or summary.max is None:
            return MedianSummary()
        bucket = _ranked(self._buckets, (self._running.count - 1) // 2)
        median = _BUCKET_RATIO ** (bucket + 0.5)
        return MedianSummary(
            **summary.model_dump(), median=min(max(median, summary.min), summary.max)
        )


def _ranked(counts: Counter[int], rank: int) -> int:
    """The value with `rank`, from 0, of all values in order."""
    for value in sorted(counts):
        rank -= counts[value]
        if rank < 0:
            return value
    raise IndexError(rank)
