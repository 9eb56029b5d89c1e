"""worker.telemetry.health: the pages for supervisors and Prometheus."""

import socket
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry, Gauge

from worker.telemetry import health
from worker.telemetry.health import HealthError, Readiness


def get(url: str, accept: str = "*/*") -> tuple[int, str, str]:
    request = urllib.request.Request(url, headers={"Accept": accept})  # noqa: S310 - http
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - http
            return answer.status, answer.read().decode(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers["Content-Type"]


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture
def url(readiness: Readiness) -> Iterator[str]:
    registry = CollectorRegistry()
    Gauge("answer", "The answer.", registry=registry).set(42)
    with health.serve("127.0.0.1", 0, registry, readiness) as url:
        yield url


def test_metrics_are_served_in_the_requested_format(url: str) -> None:
    status, text, kind = get(f"{url}/metrics")
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    assert "\nanswer 42.0\n" in text
    assert get(f"{url}/metrics", "application/openmetrics-text")[1].endswith("# EOF\n")


@pytest.mark.parametrize("version", ["abc", "", "1.x", "9.9.9", "-1", "\xff", "1.0;escaping=no"])
@pytest.mark.parametrize("kind", ["text/plain", "application/openmetrics-text"])
def test_metrics_are_served_whatever_version_of_a_format_is_asked_for(
    url: str, kind: str, version: str
) -> None:
    status, text, _ = get(f"{url}/metrics", f"{kind};version={version}")
    assert status == 200
    assert "\nanswer 42.0\n" in text


def test_a_worker_is_ready_once_loaded_and_consuming(
    url: str, readiness: Readiness, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert get(f"{url}/readyz")[:2] == (503, "loading the checkpoint\n")
    readiness.loaded()
    assert get(f"{url}/readyz")[:2] == (503, "not consuming: no reply from Redis\n")
    readiness.broker_replied()
    assert get(f"{url}/readyz")[:2] == (200, "ready\n")
    now += health.FRESH_SECONDS + 0.1
    assert get(f"{url}/readyz")[:2] == (503, "not consuming: no reply from Redis\n")
    readiness.broker_replied()
    troubles: list[str | None] = [None, "cannot store outcomes: full"]
    for trouble in troubles:
        readiness.watch(lambda trouble=trouble: trouble)  # type: ignore[misc]
    assert get(f"{url}/readyz")[:2] == (503, "cannot store outcomes: full\n")
    readiness.stopping()
    assert get(f"{url}/readyz")[:2] == (503, "shutting down\n")
    assert get(f"{url}/healthz")[:2] == (200, "alive\n")


def test_a_worker_whose_engine_hangs_is_not_ready_and_then_not_alive(
    url: str, readiness: Readiness
) -> None:
    stalled = 4.0
    readiness.watch_engine(lambda: stalled, limit=10)
    readiness.loaded()
    readiness.broker_replied()
    assert (get(f"{url}/readyz")[0], get(f"{url}/healthz")[0]) == (200, 200)
    stalled = 5.0
    reason = "the engine has not finished a step for 5 s\n"
    assert get(f"{url}/readyz")[:2] == (503, reason)
    assert get(f"{url}/healthz")[0] == 200
    stalled = 10.0
    readiness.stopping()
    assert get(f"{url}/readyz")[1] == get(f"{url}/healthz")[1]
    assert get(f"{url}/healthz")[:2] == (503, "the engine has not finished a step for 10 s\n")


def test_other_paths_are_not_found(url: str) -> None:
    assert get(f"{url}/")[0] == 404
    assert get(f"{url}/healthz?verbose=1")[0] == 200


def test_a_port_that_is_taken_is_reported_in_one_line(url: str, readiness: Readiness) -> None:
    port = int(url.rpartition(":")[2])
    with (
        pytest.raises(HealthError, match=rf"127\.0\.0\.1:{port} .*give another --metrics-port"),
        health.serve("127.0.0.1", port, CollectorRegistry(), readiness),
    ):
        pass


@pytest.mark.parametrize("version", ["one", "1.0.0.0.0", "", "1.0.0; escaping=all"])
def test_a_malformed_accept_header_gets_an_answer(url: str, version: str) -> None:
    status, text, _ = get(f"{url}/metrics", f"application/openmetrics-text; version={version}")
    assert status == 200
    assert "\nanswer 42.0\n" in text


def test_a_client_that_goes_away_leaves_no_traceback(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    address = urlsplit(url)
    for _ in range(20):
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\n")
            # Without reading anything: the server's next read fails.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert get(f"{url}/healthz")[0] == 200
    assert not capsys.readouterr().err
