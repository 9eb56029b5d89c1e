"""Figures over streams of numbers, in memory that does not grow with the streams.

Knows numbers only; what they count is the caller's.
"""

import math
from collections import Counter
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

Z_95 = 1.959963984540054
"""Standard deviations of a normal distribution that hold 95 % of it."""

_BUCKET_RATIO = 1.05
"""From one bucket of a `PositiveHistogram` to the next: medians are right within 2.5 %."""

_SMALLEST = 1e-9
"""What is below counts as this: a nanosecond, where the values are seconds."""


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, 1927); 0 to 1 where nothing was tried.

    Unlike the usual plus and minus it holds for few trials and for shares near 0 and 1.
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
    """So many of so many. Share and interval are null where there was none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    of: int
    share: float | None
    low: float | None = Field(description="Lower end of the 95 % Wilson interval.")
    high: float | None = Field(description="Upper end of the 95 % Wilson interval.")

    @classmethod
    def measured(cls, count: int, of: int) -> Self:
        """`count` of `of` independent trials."""
        if of == 0:
            return cls(count=0, of=0, share=None, low=None, high=None)
        low, high = wilson_interval(count, of)
        return cls(count=count, of=of, share=count / of, low=low, high=high)


class Summary(BaseModel):
    """How values are spread. All null where there was none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float | None = None
    spread: float | None = Field(default=None, description="Standard deviation of these values.")
    min: float | None = None
    max: float | None = None


class MedianSummary(Summary):
    """A summary with the value that half of all do not exceed."""

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
        """Of all values so far."""
        if not self.count:
            return Summary()
        return Summary(
            # Rounding may carry the mean of equal values just past them.
            mean=min(max(self._mean, self._min), self._max),
            spread=math.sqrt(self._squares / self.count),
            min=self._min,
            max=self._max,
        )


class IntegerHistogram:
    """All figures of integers that take few values, such as steps: exact."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, value: int) -> None:
        """Count one value."""
        self.counts[value] += 1

    def summary(self) -> MedianSummary:
        """Of all values so far; the median of an even number of them lies between two."""
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
    """Figures of positive numbers, such as seconds: exact but for the median, within 2.5 %."""

    def __init__(self) -> None:
        self._running = RunningStatistics()
        self._buckets: Counter[int] = Counter()

    def add(self, value: float) -> None:
        """Count one value."""
        self._running.add(value)
        self._buckets[math.floor(math.log(max(value, _SMALLEST), _BUCKET_RATIO))] += 1

    def summary(self) -> MedianSummary:
        """Of all values so far."""
        summary = self._running.summary()
        if summary.min is None or summary.max is None:
            return MedianSummary()
        bucket = _ranked(self._buckets, (self._running.count - 1) // 2)
        median = _BUCKET_RATIO ** (bucket + 0.5)
        return MedianSummary(
            **summary.model_dump(), median=min(max(median, summary.min), summary.max)
        )


def _ranked(counts: Counter[int], rank: int) -> int:
    """The value at place `rank` (from 0) of all in order."""
    for value in sorted(counts):
        rank -= counts[value]
        if rank < 0:
            return value
    raise IndexError(rank)
