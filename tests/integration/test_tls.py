"""TLS with certificates of a real authority: what is accepted, and how a refusal is worded.

The server of the wheel has no TLS, so a port in front of it speaks it.
"""

import asyncio
import os
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.processes import REAL, ROOT, STUB, Worker
from tests.support.servers import server
from tests.support.stubs import message
from tests.support.tls import HOST, Authority, tls
from worker.client import BrokerUnreachable, Client
from worker.client import asyncio as awaited


@dataclass
class Site:
    """A Redis, and the ports in front of it that speak TLS."""

    folder: Path
    port: int
    stack: ExitStack
    ours: Authority = field(init=False)

    def __post_init__(self) -> None:
        self.ours = Authority(self.folder)

    @property
    def authority(self) -> str:
        """The option that names the authority."""
        return f"ssl_ca_certs={self.ours.file}"

    def url(self, context: ssl.SSLContext, *options: str, host: str = HOST) -> str:
        port = self.stack.enter_context(tls(context, self.port))
        return f"rediss://{host}:{port}/0?{'&'.join(options)}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with server(tmp_path) as redis, ExitStack() as stack:
        yield Site(tmp_path, redis.port, stack)


def submit(folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    file = folder / "messages.jsonl"
    file.write_text("".join(f"{message().model_dump_json()}\n" for _ in range(3)))
    return subprocess.run(
        [REAL[0], "submit", "--data-path", file],
        env={**os.environ, "SQE_REDIS_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def send_awaited(url: str) -> None:
    async with awaited.Client(url) as client:
        assert (await client.result(await client.submit(message()))).solved


@pytest.mark.parametrize("form", ["", "ssl_cert_reqs=required", "ssl_cert_reqs=CERT_REQUIRED"])
@pytest.mark.parametrize("clients", [False, True], ids=["", "client certificates"])
def test_everything_works_with_certificates_that_each_side_accepts(
    site: Site,
    form: str,
    clients: bool,  # noqa: FBT001 - a parameter
) -> None:
    options = [form, site.authority, *([site.ours.client_options()] if clients else [])]
    url = site.url(site.ours.server(clients=clients), *filter(None, options))
    with Worker.start(STUB, site.folder, url) as worker, Client(url) as client:
        worker.wait_until_ready()
        assert client.result(client.submit(message())).solved
        asyncio.run(send_awaited(url))
        done = submit(site.folder, url)
        assert done.returncode == 0, done.stderr
        assert worker.total("evaluations_total") == 5


@contextmanager
def refused(expected: str) -> Iterator[None]:
    with pytest.raises(BrokerUnreachable) as caught:
        yield
    text = str(caught.value)
    assert text == f"Redis is not reachable: {expected}"


def start_worker(site: Site, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        STUB,
        cwd=site.folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SQE_REDIS_URL": url,
            "SQE_METRICS_PORT": "0",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def check_refusal(site: Site, url: str, expected: str) -> None:
    """Each of the four says the same, in one line, and a worker that cannot work ends."""
    with Client(url) as client, refused(expected):
        client.submit(message())
    with refused(expected):
        asyncio.run(send_awaited(url))
    line = f"sqe-hrm: error: Redis is not reachable: {expected}\n"
    done = submit(site.folder, url)
    assert (done.returncode, done.stderr) == (1, line)
    done = start_worker(site, url)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, line.strip())


UNVERIFIED = "the server's certificate is not accepted"


@pytest.mark.parametrize("form", ["", "ssl_cert_reqs=CERT_REQUIRED"])
def test_a_server_of_an_unknown_authority_is_refused(site: Site, form: str) -> None:
    other = f"ssl_ca_certs={Authority(site.folder).file}"
    for options in ([form], [form, other]):
        check_refusal(
            site,
            site.url(site.ours.server(), *filter(None, options)),
            f"{UNVERIFIED} (unable to get local issuer certificate): name the file of its "
            "authority with ?ssl_ca_certs=FILE in SQE_REDIS_URL",
        )


def test_a_certificate_for_another_host_is_refused(site: Site) -> None:
    for given, named, said in (
        (HOST, "redis.example.com", f"IP address mismatch, certificate is not valid for '{HOST}'"),
        ("localhost", HOST, "Hostname mismatch, certificate is not valid for 'localhost'"),
    ):
        check_refusal(
            site,
            site.url(site.ours.server(named), site.authority, host=given),
            f"{UNVERIFIED} ({said}): write a host in SQE_REDIS_URL that the certificate names",
        )


def test_an_expired_certificate_is_refused(site: Site) -> None:
    url = site.url(site.ours.server(expired=True), site.authority)
    check_refusal(site, url, f"{UNVERIFIED} (certificate has expired): renew it")


def test_a_client_whose_certificate_is_missing_or_not_known_is_refused(site: Site) -> None:
    server_side = site.ours.server(clients=True)
    fix = (
        "name a certificate that the server accepts with ssl_certfile and ssl_keyfile in "
        "SQE_REDIS_URL"
    )
    unknown = Authority(site.folder).client_options()
    for options in ([site.authority], [site.authority, unknown]):
        url = site.url(server_side, *options)
        with Client(url) as client, pytest.raises(BrokerUnreachable) as caught:
            client.submit(message())
        # In TLS 1.3, the refusal comes after the handshake, when the client may be writing.
        assert str(caught.value).endswith(fix)
    done = submit(site.folder, site.url(server_side, site.authority))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.endswith(f"{fix}\n")


def test_a_worker_without_a_certificate_that_the_server_wants_ends(site: Site) -> None:
    server_side = site.ours.server(clients=True)
    # In TLS 1.3, the worker might meet the end of the connection first, and would try again.
    server_side.maximum_version = ssl.TLSVersion.TLSv1_2
    done = start_worker(site, site.url(server_side, site.authority))
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert said.startswith("sqe-hrm: error: Redis is not reachable: the server refuses this client")
    assert said.endswith("with ssl_certfile and ssl_keyfile in SQE_REDIS_URL")
