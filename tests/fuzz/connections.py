"""The worker's HTTP server: real connections with requests of any form.

Knows sockets and status lines; of the server, only its address and its pages.
"""

import contextlib
import io
import logging
import socket
import struct
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Gauge

from tests.fuzz.mutation import Mutator
from tests.fuzz.runs import Check, Input
from worker.telemetry.health import Readiness, serve

SECONDS = 20.0
"""Time for an answer: far more than one takes, and more than a silent client is tolerated."""

PROBE_EVERY = 100
"""Cases between two looks whether the server is still there."""

MANY = 60
"""Connections that a case may hold at the same time."""

REQUESTS = (
    b"GET /metrics HTTP/1.1\r\nHost: worker\r\nAccept: text/plain;version=0.0.4;q=0.5,*/*\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n",
    b"GET /readyz?verbose=1 HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n",
    b"GET /healthz HTTP/1.0\r\n\r\n",
    b"GET /healthz\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /readyz HTTP/1.1\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 150 + b"\r\n",
    b"GET /metrics HTTP/1.1\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"GET http://[::1/../metrics HTTP/1.1\r\n\r\n",
    b"GET //metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=one\r\n\r\n",
    b"HEAD /metrics HTTP/9.9\r\n\r\n",
)

TOKENS = (
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b"\x00", b":", b";", b",", b"=", b"/", b"%"),
    *(b"HTTP/1.1", b"HTTP/0.9", b"HTTP/", b"OPTIONS", b"DELETE", b"__init__", b"Accept: "),
    *(
        b"version=0",
        b"version=1.0.0.0",
        b"escaping=",
        b"escaping=values",
        b"escaping=allow-utf-8",
        b"q=",
        b"\xff",
        b"\xe9",
    ),
    b"application/openmetrics-text; version=99999999999999999999",
)


@dataclass(frozen=True)
class Talk:
    """The bytes that a client sends, and how it goes away."""

    data: bytes
    connections: int = 1
    resets: bool = False
    """Whether the client goes without reading, and resets the connection."""


def damaged_request(mutator: Mutator) -> Talk:
    request = mutator.random.choice(REQUESTS)
    data: bytes = mutator.one_of(
        lambda: request,
        lambda: mutator.damage(request),
        lambda: _with_tokens(mutator, request),
        lambda: _with_tokens(mutator, request),
        lambda: request[: mutator.random.randint(0, len(request))],
        mutator.noise,
    )
    many = mutator.random.random() < 0.005
    return Talk(data, MANY if many else 1, resets=mutator.random.random() < 0.1)


def _with_tokens(mutator: Mutator, request: bytes) -> bytes:
    for _ in mutator.some():
        at = mutator.random.randint(0, len(request))
        end = min(len(request), at + mutator.random.choice((0, 0, 1, 5)))
        request = request[:at] + mutator.random.choice(TOKENS) + request[end:]
    return request


@contextlib.contextmanager
def talking() -> Iterator[Check]:
    registry = CollectorRegistry()
    Gauge("answer", "The answer.", registry=registry).set(42)
    readiness = Readiness()
    readiness.loaded()
    log = io.StringIO()
    with (
        contextlib.redirect_stderr(log),
        _logged(log),
        serve("127.0.0.1", 0, registry, readiness) as url,
    ):
        address = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
        done = 0

        def probe() -> None:
            """Make sure that the server answers as ever."""
            readiness.broker_replied()
            with urllib.request.urlopen(f"{url}/readyz", timeout=SECONDS) as answer:  # noqa: S310
                assert answer.read() == b"ready\n"

        def check(talk: Talk) -> str | None:
            nonlocal done
            readiness.broker_replied()
            try:
                answer = _talk(address, talk)
                done += 1
                if done % PROBE_EVERY == 0 or talk.connections > 1:
                    probe()
                assert not log.getvalue(), log.getvalue()
            finally:
                log.truncate(0)
                log.seek(0)
            return answer

        yield check
        probe()


@contextlib.contextmanager
def _logged(log: io.StringIO) -> Iterator[None]:
    """Write to `log` what the server logs: a request of any form is not worth a line."""
    handler = logging.StreamHandler(log)
    loggers = [logging.getLogger(name) for name in ("worker.telemetry", "waitress")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def _talk(address: tuple[str, int], talk: Talk) -> str | None:
    with contextlib.ExitStack() as stack:
        # All but one are left open and silent, until the one is answered.
        for _ in range(talk.connections - 1):
            other = stack.enter_context(socket.create_connection(address, SECONDS))
            with contextlib.suppress(OSError):
                other.sendall(talk.data)
                other.shutdown(socket.SHUT_WR)
        client = stack.enter_context(socket.create_connection(address, SECONDS))
        received = b""
        with contextlib.suppress(ConnectionError):  # the server may close before the end
            client.sendall(talk.data)
            if talk.resets:
                linger = struct.pack("ii", 1, 0)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return "reset by the client"
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)
            while part := client.recv(1 << 16):
                received += part
    return _outcome(received)


def _outcome(received: bytes) -> str | None:
    """Name what a client received; None for an answer to a sound request."""
    received = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    if not received:
        return "closed"
    if not received.startswith(b"HTTP/1."):
        return "answered without a status"  # to a request without a version of HTTP
    status = int(received.split(b" ", 2)[1])
    # Methods, versions and too long headers have statuses; a failure of the server has none here.
    assert status < 500 or status in {501, 505}, received[:200]
    return None if status == 200 else str(status)


HTTP = Input("HTTP", 6_000, damaged_request, talking)
