"""worker.fleet.pages and worker.fleet.merge: one page for the figures of several workers."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from schemas import RejectionReason
from tests.support.stubs import StubEvaluator
from worker.fleet import pages
from worker.fleet.members import Member
from worker.fleet.supervisor import Supervisor
from worker.telemetry import health
from worker.telemetry.health import Readiness
from worker.telemetry.metrics import Metrics
from worker.telemetry.scrape import Scrape, read_page, scrape

README = Path(__file__).parents[4] / "worker" / "README.md"


class Serving:
    """A child whose pages are served by this process."""

    last_line = ""
    silent_seconds = 0.0
    ready_since: float | None = None

    def __init__(self, url: str | None, not_ready_reason: str | None) -> None:
        self.url, self.not_ready_reason = url, not_ready_reason

    def poll(self) -> None: ...

    def send_signal(self, number: object) -> None: ...

    def kill(self) -> None: ...


class Fleet:
    """A supervisor's pages, above workers that have only pages."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.children: dict[Member, Serving] = {}

    def add(
        self, member: Member, registry: CollectorRegistry | None, reason: str | None = None
    ) -> str | None:
        """Add a worker with these metrics, or one that serves nothing. Returns its URL."""
        url = None
        if registry is not None:
            url = self._stack.enter_context(health.serve("127.0.0.1", 0, registry, Readiness()))
        self.children[member] = Serving(url, reason)
        return url

    def serve(self) -> str:
        supervisor = Supervisor(
            list(self.children), self.children.__getitem__, grace_seconds=1, stall_seconds=1
        )
        supervisor.step()
        return self._stack.enter_context(pages.serve("127.0.0.1", 0, supervisor))


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(stack)


def counting(value: float) -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("sqe_hrm_done_total", "Done.", ["kind"], registry=registry).labels("a").inc(value)
    Gauge("sqe_hrm_device_info", "1.", ["device"], registry=registry).labels("cuda:0").set(1)
    return registry


def real(rejected: int) -> CollectorRegistry:
    metrics = Metrics()
    metrics.watch_engine(StubEvaluator(), memory=dict, stalled_seconds=lambda: 0.0, cached=True)
    for _ in range(rejected):
        metrics.rejected(RejectionReason.NOT_JSON)
    return metrics.registry


def series(page: Scrape) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {(each.name, frozenset(each.labels.items())): each.value for each in page.samples}


def test_every_series_of_every_worker_is_there_with_its_labels(fleet: Fleet) -> None:
    alone = [fleet.add(Member("cuda:0", number), real(number)) for number in (0, 1)]
    merged = series(scrape(fleet.serve()))
    expected = {}
    for number, url in enumerate(alone):
        assert url is not None
        added = {("device", "cuda:0"), ("process", str(number))}
        for (name, labels), value in series(scrape(url)).items():
            own = {label for label, _ in labels}
            both = labels | {each for each in added if each[0] not in own}
            expected[name, frozenset(both)] = value
    ours = {key for key in merged if not key[0].startswith("sqe_hrm_worker_")}
    assert ours == expected.keys()
    assert len(ours) > 300
    changing = ("process_", "python_gc")
    for key, value in expected.items():
        if not key[0].startswith(changing):
            assert merged[key] == value, key


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text"])
def test_each_metric_is_described_once(fleet: Fleet, accept: str) -> None:
    for number in range(3):
        fleet.add(Member("cpu", number), real(number))
    request = urllib.request.Request(  # noqa: S310 - http
        f"{fleet.serve()}/metrics", headers={"Accept": accept}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - http
        text = answer.read().decode()
    types = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) > 30
    parse = openmetrics if "openmetrics" in accept else text_string_to_metric_families
    rejected = next(f for f in parse(text) if f.name == "sqe_hrm_rejected")
    totals = [s.value for s in rejected.samples if s.labels.get("reason") == "not_json"]
    assert [value for value in totals if value < 10] == [0, 1, 2]


def test_a_label_that_a_worker_gives_stays_its_own(fleet: Fleet) -> None:
    fleet.add(Member("cuda:3"), counting(1))
    (info,) = [s for s in scrape(fleet.serve()).samples if s.name == "sqe_hrm_device_info"]
    assert info.labels == {"device": "cuda:0"}


def test_a_worker_without_pages_is_left_out_and_shown_as_down(fleet: Fleet) -> None:
    fleet.add(Member("cuda:0"), counting(3))
    fleet.add(Member("cuda:1"), None, "starting")
    fleet.add(Member("cuda:2"), CollectorRegistry(), "does not answer")
    fleet.children[Member("cuda:2")].url = "http://127.0.0.1:1"
    page = scrape(fleet.serve())
    up = {s.labels["device"]: s.value for s in page.samples if s.name == "sqe_hrm_worker_up"}
    assert up == {"cuda:0": 1, "cuda:1": 0, "cuda:2": 0}
    assert page.total("done_total") == 3
    restarts = [s.value for s in page.samples if s.name == "sqe_hrm_worker_restarts_total"]
    assert restarts == [0, 0, 0]


def test_a_page_that_is_no_workers_is_left_out(fleet: Fleet) -> None:
    url = fleet.add(Member("cpu"), counting(1))
    fleet.children[Member("cpu")].url = f"{url}/readyz?"
    assert scrape(fleet.serve()).total("worker_up") == 0


def test_it_is_ready_with_one_worker_and_says_how_each_is(fleet: Fleet) -> None:
    fleet.add(Member("cuda:0"), counting(0))
    fleet.add(Member("cuda:1"), None, "starting")
    url = fleet.serve()
    assert read_page(f"{url}/readyz") == (200, "ready\ncuda:0: ready\ncuda:1: starting\n")
    fleet.children[Member("cuda:0")].not_ready_reason = "not consuming: no reply from Redis"
    status, text = read_page(f"{url}/readyz")
    assert status == 503
    assert text.splitlines() == [
        "no worker is ready",
        "cuda:0: not consuming: no reply from Redis",
        "cuda:1: starting",
    ]
    assert read_page(f"{url}/healthz") == (200, "alive\n")


def test_prometheus_discovers_the_workers_that_serve_pages(fleet: Fleet) -> None:
    url = fleet.add(Member("cuda:0", 0), counting(0))
    fleet.add(Member("cuda:0", 1), None, "starting")
    assert url is not None
    with urllib.request.urlopen(f"{fleet.serve()}/targets", timeout=10) as answer:  # noqa: S310
        assert answer.headers["Content-Type"] == "application/json"
        assert json.load(answer) == [
            {
                "targets": [url.removeprefix("http://")],
                "labels": {"device": "cuda:0", "process": "0"},
            }
        ]
