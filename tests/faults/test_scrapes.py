"""A worker's pages while clients of the pages hang."""

import socket
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.processes import STUB, Worker
from tests.support.servers import server


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
