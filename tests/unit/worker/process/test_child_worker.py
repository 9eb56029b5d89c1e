"""worker.process.child_worker: worker processes that start, do not start, or end."""

import os
import sys
from pathlib import Path

import pytest

from worker.process import child_worker
from worker.process.child_worker import ChildWorkerError, start_worker

SERVES = """
import signal, sys, threading
from worker.telemetry import health, logs
from prometheus_client import CollectorRegistry
readiness = health.Readiness()
logs.configure_logging()
end = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: end.set())
with health.serve("127.0.0.1", 0, CollectorRegistry(), readiness) as url:
    logs.logging.info("serving %s/metrics, /healthz and /readyz", url)
    if sys.argv[1] == "ready":
        readiness.loaded()
        readiness.broker_replied()
    end.wait()
print("finished")
"""
"""A program that serves a worker's pages, ready or not, until SIGTERM."""


def program(source: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", source, *arguments]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "worker.log"


def test_a_worker_is_found_by_the_url_in_its_log_and_ends_with_the_block(log: Path) -> None:
    with start_worker(program(SERVES, "ready"), log=log, environ=os.environ) as worker:
        assert worker.wait_until_ready().is_ready()
        assert worker.scrape().total("evaluations_total") == 0
        worker.check()
    assert worker.process.returncode == 0
    assert log.read_text().endswith("finished\n")
    assert not worker.is_ready()


def test_a_worker_that_ends_is_reported_with_its_last_line(log: Path) -> None:
    source = "print('loading', flush=True); raise SystemExit('no checkpoint: give one')"
    with (
        pytest.raises(ChildWorkerError) as caught,
        start_worker(program(source), log=log, environ=os.environ),
    ):
        pass
    assert str(caught.value) == f"the worker ended: no checkpoint: give one (see {log})"


def test_a_worker_that_ends_while_it_is_used_is_noticed(log: Path) -> None:
    with start_worker(program(SERVES, "ready"), log=log, environ=os.environ) as worker:
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(ChildWorkerError, match=r"the worker ended: .* \(see .*worker\.log\)"):
            worker.check()


def test_a_worker_that_serves_no_page_in_time_is_reported_with_its_log(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_worker, "START_SECONDS", 0.1)
    with (
        pytest.raises(ChildWorkerError, match=rf"serves no metrics after 0\.1 s: see {log}"),
        start_worker(program("import time; time.sleep(60)"), log=log, environ=os.environ),
    ):
        pass


def test_a_worker_that_is_not_ready_in_time_is_reported_with_its_log(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_worker(program(SERVES, "loading"), log=log, environ=os.environ) as worker:
        monkeypatch.setattr(child_worker, "START_SECONDS", 0.1)
        with pytest.raises(ChildWorkerError, match=rf"is not ready after 0\.1 s: see {log}"):
            worker.wait_until_ready()
