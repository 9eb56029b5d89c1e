"""Every form of a URL of Redis, for a worker, an agent and `sqe-hrm submit`."""

import asyncio
import os
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.processes import REAL, STUB, Worker, wait_for
from tests.support.servers import Proxy, server
from tests.support.stubs import message
from worker.broker.app import EVALUATE, create_app
from worker.client import Client
from worker.client import asyncio as awaited

TLS = Path(__file__).parents[1] / "fixtures" / "tls"
"""A certificate for 127.0.0.1 that is its own authority."""

CERTIFICATE = f"ssl_ca_certs={TLS / 'certificate.pem'}"


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a Redis in the form that the test names."""
    form: str = request.param
    with ExitStack() as stack:
        # A path of a Unix socket may have 108 characters.
        redis = stack.enter_context(server(tmp_path, "--unixsocket", "socket"))
        if form == "unix":
            socket = next(tmp_path.glob("*/socket"))
            yield f"unix://{socket}?db=3"
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
            port = stack.enter_context(Proxy(redis.port, tls=context).running()).port
            yield f"rediss://127.0.0.1:{port}/0?{form}&{CERTIFICATE}"


async def one_awaited(url: str) -> None:
    async with awaited.Client(url) as client:
        assert (await client.result(await client.submit(message()))).solved


FORMS = ["unix", "ssl_cert_reqs=required", "ssl_cert_reqs=CERT_REQUIRED"]


@pytest.mark.parametrize("url", FORMS, indirect=True)
def test_messages_are_evaluated_over_every_form_of_a_url(url: str, tmp_path: Path) -> None:
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
        assert "queue_messages{queue=sqe.evaluate}{state=ready}" in worker.metrics()
