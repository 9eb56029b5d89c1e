"""A worker's pages while Redis hangs, or while clients of the pages do."""

import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.processes import STUB, Worker, wait_for
from tests.support.servers import server

QUEUE = "queue_messages{queue=sqe.evaluate}{state=ready}"
ERRORS = "errors_total{kind=scrape_redis}"


def test_a_scrape_does_not_wait_for_a_redis_that_hangs(tmp_path: Path) -> None:
    durations: list[float] = []

    def scrape() -> dict[str, float]:
        started = time.monotonic()
        metrics = worker.metrics()
        durations.append(time.monotonic() - started)
        return metrics

    with server(tmp_path) as store, Worker.start(STUB, tmp_path, store.url) as worker:
        worker.wait_until_ready()
        assert scrape()[QUEUE] == 0
        store.signal(signal.SIGSTOP)
        errors = []
        while QUEUE in (metrics := scrape()):
            errors.append(metrics[ERRORS])
        assert sum(errors) == 0, "nothing is wrong while the last reading is young"
        assert scrape()[ERRORS] > 0
        assert worker.get("/readyz")[0] == 503
        # The median, since this machine may be busy; a wait of a second for Redis would be in each.
        assert sorted(durations)[len(durations) // 2] < 0.3
        store.signal(signal.SIGCONT)
        wait_for(lambda: QUEUE in scrape(), "read again")
        worker.wait_until_ready()


def test_silent_clients_do_not_keep_a_scrape_waiting(tmp_path: Path) -> None:
    with (
        server(tmp_path) as store,
        Worker.start(STUB, tmp_path, store.url) as worker,
        ExitStack() as stack,
    ):
        worker.wait_until_ready()
        parts = urlsplit(worker.url)
        assert parts.hostname == "127.0.0.1"
        for _ in range(100):
            address = (parts.hostname, parts.port or 0)
            stack.enter_context(socket.create_connection(address)).sendall(b"GET /metr")
        started = time.monotonic()
        assert worker.get("/readyz")[0] == 200
        assert worker.metrics()
        assert time.monotonic() - started < 5, "which is less than a silent client has"
