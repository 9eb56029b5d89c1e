"""Prometheus metrics of many values at once or at each scrape, and what all metrics share.

Knows names and numbers; nothing of what they mean.
"""

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from prometheus_client import Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

PREFIX = "sqe_hrm"

# A series of each counter's and histogram's time of creation would be two fifths of all.
disable_created_metrics()  # type: ignore[no-untyped-call]

LONG_SECONDS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
    *(20, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 28800),
)
"""Bucket limits in seconds, from one step of a GPU to a backlog of eight hours."""


class Distribution(Histogram):
    """A histogram that many values are added to at once."""

    def observe_all(self, values: Sequence[float]) -> None:
        """Add `values`: one operation of a bucket for all that fall into it."""
        self._sum.inc(sum(values))
        places = Counts(map(partial(bisect_left, self._upper_bounds), values))
        for place, count in places.items():
            self._buckets[place].inc(count)


class OnScrape(Collector):
    """Metrics that are read at each scrape."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Describe nothing, so that registering reads nothing."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Read the metrics."""
        return self._read()


def gauge(
    name: str, text: str, values: Mapping[tuple[str, ...], float], *labels: str
) -> GaugeMetricFamily:
    """Build a gauge of values by their labels."""
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def counter(
    name: str, text: str, values: Mapping[tuple[str, ...], float], *labels: str
) -> CounterMetricFamily:
    """Build a counter; `name` comes without the suffix `_total`, which is added on the page."""
    family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family
