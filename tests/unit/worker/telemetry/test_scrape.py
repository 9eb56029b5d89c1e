"""worker.telemetry.scrape: figures as a worker serves them."""

from collections.abc import Iterator

import pytest

from schemas import RejectionReason
from worker.telemetry import health
from worker.telemetry.metrics import Metrics
from worker.telemetry.scrape import ScrapeError, read_families, read_page, scrape


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def url(metrics: Metrics) -> Iterator[str]:
    with health.serve("127.0.0.1", 0, metrics.registry, health.Readiness()) as url:
        yield url


def test_a_total_is_the_sum_over_the_labels_of_one_metric(metrics: Metrics, url: str) -> None:
    for reason in (RejectionReason.NOT_JSON, RejectionReason.NOT_JSON, RejectionReason.TOO_DEEP):
        metrics.rejected(reason)
    metrics.duplicate()
    figures = scrape(url)
    assert figures.total("rejected_total") == 3
    assert figures.total("duplicates_total") == 1
    assert figures.total("nonesuch_total") == 0


def test_a_page_is_read_whatever_its_status(url: str) -> None:
    assert read_page(f"{url}/healthz") == (200, "alive\n")
    assert read_page(f"{url}/readyz") == (503, "loading the checkpoint\n")


def test_a_page_is_read_without_a_proxy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert read_page(f"{url}/healthz") == (200, "alive\n")


def test_all_metrics_are_read_with_nothing_lost(metrics: Metrics, url: str) -> None:
    metrics.duplicate()
    (family,) = [each for each in read_families(url, 10) if each.name == "sqe_hrm_duplicates"]
    assert (family.type, family.documentation) == (
        "counter",
        "Messages that were answered again, and are not counted again.",
    )
    assert [(sample.name, sample.value) for sample in family.samples] == [
        ("sqe_hrm_duplicates_total", 1)
    ]
    with pytest.raises(ScrapeError, match="answers 404"):
        read_families(f"{url}/other", 10)


def test_an_address_where_nobody_listens_is_named_in_one_line() -> None:
    with pytest.raises(ScrapeError) as caught:
        scrape("http://127.0.0.1:1")
    assert str(caught.value).startswith("http://127.0.0.1:1/metrics does not answer (")
    assert "\n" not in str(caught.value)


def test_an_address_of_something_else_is_no_worker(url: str) -> None:
    with pytest.raises(ScrapeError, match=r"/other/metrics answers 404: is it the URL of a worker"):
        scrape(f"{url}/other")
