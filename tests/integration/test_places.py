"""A Unix socket, for a worker, an agent and `sqe-hrm submit`. TLS is in `test_tls.py`."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import REAL, STUB, Worker, wait_for
from tests.support.servers import server
from tests.support.stubs import message
from worker.broker.app import EVALUATE, create_app
from worker.client import Client
from worker.client import asyncio as awaited


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The URL of a Redis on a Unix socket."""
    # A path of a Unix socket may have 108 characters.
    with server(tmp_path, "--unixsocket", "socket"):
        yield f"unix://{next(tmp_path.glob('*/socket'))}?db=3"


async def one_awaited(url: str) -> None:
    async with awaited.Client(url) as client:
        assert (await client.result(await client.submit(message()))).solved


def test_messages_are_evaluated_over_a_unix_socket(url: str, tmp_path: Path) -> None:
    file = tmp_path / "messages.jsonl"
    file.write_text("".join(f"{message().model_dump_json()}\n" for _ in range(3)))
    with Worker.start(STUB, tmp_path, url) as worker, Client(url) as client:
        worker.wait_until_ready()
        assert client.result(client.submit(message())).solved
        asyncio.run(one_awaited(url))
        done = subprocess.run(
            [REAL[0], "submit", "--data-path", file],
            env={**os.environ, "SQE_REDIS_URL": url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        with create_app(url) as app:
            assert app.send_task(EVALUATE, [message().model_dump_json()]).get(timeout=30)["solved"]
        wait_for(lambda: worker.total("evaluations_total") == 6, "counted")
