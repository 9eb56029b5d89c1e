"""Join the metrics of several workers on one page.

Knows metrics, labels and the time that a page may take; nothing of what the figures mean.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from worker.fleet.supervisor import State
from worker.telemetry.families import OnScrape, counter, gauge
from worker.telemetry.scrape import ScrapeError, read_families

SCRAPE_SECONDS = 5.0
"""Longest time to wait for a worker's figures: half of what Prometheus allows for the page."""

LABELS = ("device", "process")


def merged(states: Callable[[], Sequence[State]]) -> Collector:
    """Build the metrics of all workers, each with its labels, and of which workers answered.

    `states` returns the workers at each scrape.
    """
    return OnScrape(lambda: _collect(states()))


def _collect(states: Sequence[State]) -> Iterator[Metric]:
    """Read the pages of all workers at once."""
    with ThreadPoolExecutor(max_workers=len(states)) as pool:
        pages = list(pool.map(_read, states))
    up = gauge("worker_up", "1 if this worker of a fleet answers, otherwise 0.", {}, *LABELS)
    restarts = counter(
        "worker_restarts", "Times that this worker of a fleet was started again.", {}, *LABELS
    )
    for state, page in zip(states, pages, strict=True):
        labels = state.member.labels
        up.add_sample(up.name, labels, float(page is not None))
        restarts.add_sample(f"{restarts.name}_total", labels, state.restarts)
    yield up
    yield restarts
    yield from merge(
        (state.member.labels, page)
        for state, page in zip(states, pages, strict=True)
        if page is not None
    )


def merge(pages: Iterable[tuple[Mapping[str, str], Iterable[Metric]]]) -> list[Metric]:
    """Join pages, with the labels of each added to its samples; a sample's own labels stay."""
    families: dict[str, Metric] = {}
    for labels, page in pages:
        for metric in page:
            family = families.setdefault(
                metric.name, Metric(metric.name, metric.documentation, metric.type, metric.unit)
            )
            family.samples += [
                sample._replace(labels={**labels, **sample.labels}) for sample in metric.samples
            ]
    return list(families.values())


def _read(state: State) -> list[Metric] | None:
    """Read a worker's metrics; None if it does not answer."""
    if state.url is None:
        return None
    try:
        return read_families(state.url, SCRAPE_SECONDS)
    except ScrapeError:
        return None
