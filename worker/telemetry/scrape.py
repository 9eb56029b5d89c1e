"""Read a worker's pages over HTTP: the figures of `/metrics`, and any other page as text.

Knows HTTP and Prometheus' formats; not what the figures mean.
"""

import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from schemas import SQEHRMError
from worker.telemetry.families import PREFIX

TIMEOUT = 10.0
"""Seconds for one page, as Prometheus allows by default."""


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens URLs without the proxy that `http_proxy` may name: workers are near, and often on loopback,
which a proxy does not reach."""


class ScrapeError(SQEHRMError):
    """A worker's page cannot be read."""


@dataclass(frozen=True)
class Scrape:
    """The figures of a worker at one moment."""

    samples: tuple[Sample, ...]

    def total(self, name: str, **labels: str) -> float:
        """Sum one of the project's metrics over all series with these labels.

        `name` comes without the prefix.
        """
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == f"{PREFIX}_{name}" and labels.items() <= sample.labels.items()
        )


def scrape(url: str) -> Scrape:
    """Read the `/metrics` page of the worker at `url`. Raises `ScrapeError`."""
    status, text = read_page(f"{url}/metrics")
    if status != HTTPStatus.OK:
        raise ScrapeError(f"{url}/metrics answers {status}: is it the URL of a worker?")
    families = text_string_to_metric_families(text)
    return Scrape(tuple(sample for family in families for sample in family.samples))


def read_families(url: str, timeout: float) -> list[Metric]:
    """Read the `/metrics` page of the worker at `url` with nothing lost. Raises `ScrapeError`.

    `timeout` is the longest time in seconds without an answer. The page is asked for in the format
    OpenMetrics, in which the samples of a metric stay together.
    """
    page = f"{url}/metrics"
    status, text = read_page(page, timeout, accept="application/openmetrics-text")
    if status != HTTPStatus.OK:
        raise ScrapeError(f"{page} answers {status}: is it the URL of a worker?")
    try:
        return list(openmetrics_families(text))  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ScrapeError(f"{page} has no metrics ({error}): is it a worker's?") from None


def read_page(url: str, timeout: float = TIMEOUT, *, accept: str = "*/*") -> tuple[int, str]:
    """Read the status and the text of a page, whatever the status. Raises `ScrapeError`.

    Args:
        url: The page's URL.
        timeout: Longest time in seconds without an answer.
        accept: The content types that are asked for.
    """
    request = urllib.request.Request(url, headers={"Accept": accept})  # noqa: S310 - a worker's URL
    try:
        with _DIRECT.open(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        raise ScrapeError(f"{url} does not answer ({error}): is the worker running?") from None
