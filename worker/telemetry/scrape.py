"""Read a worker's pages over HTTP: the figures of `/metrics`, and any other page as text.

Knows HTTP and Prometheus' text format; not what the figures mean.
"""

import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from schemas import SQEHRMError
from worker.telemetry.metrics import PREFIX

TIMEOUT = 10.0
"""Seconds for one page, as Prometheus allows by default."""


class ScrapeError(SQEHRMError):
    """A worker's page cannot be read."""


@dataclass(frozen=True)
class Scrape:
    """The figures of a worker at one moment."""

    samples: tuple[Sample, ...]

    def total(self, name: str) -> float:
        """Sum one of the project's metrics over its labels; `name` comes without the prefix."""
        return sum(sample.value for sample in self.samples if sample.name == f"{PREFIX}_{name}")


def scrape(url: str) -> Scrape:
    """Read the `/metrics` page of the worker at `url`. Raises `ScrapeError`."""
    status, text = read_page(f"{url}/metrics")
    if status != HTTPStatus.OK:
        raise ScrapeError(f"{url}/metrics answers {status}: is it the URL of a worker?")
    families = text_string_to_metric_families(text)
    return Scrape(tuple(sample for family in families for sample in family.samples))


def read_page(url: str) -> tuple[int, str]:
    """Read the status and the text of a page, whatever the status. Raises `ScrapeError`."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:  # noqa: S310 - a worker's URL
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        raise ScrapeError(f"{url} does not answer ({error}): is the worker running?") from None
