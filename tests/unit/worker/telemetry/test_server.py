"""worker.telemetry.server: what any client may do, and what it cannot do to other clients."""

import errno
import logging
import os
import select
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http import HTTPStatus
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.server import TcpWSGIServer

from tests.support.processes import wait_for
from worker.telemetry import server
from worker.telemetry.server import Answer, serving

LONG = 60
"""Seconds for what happens at once on a quiet machine. What these tests forbid lasts for ever."""

BIG = b"x" * 32_000_000
"""More than the buffers of a connection hold."""


class Slow:
    """A page that is built only when it is allowed to."""

    def __init__(self) -> None:
        self.allowed = threading.Event()
        self.at_once = 0

    def answer(self, _: str) -> Answer:
        self.at_once += 1
        self.allowed.wait(2 * LONG)
        return Answer(HTTPStatus.OK, b"slow")


def broken(_: str) -> Answer:
    raise ZeroDivisionError


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.allowed.set()


@contextmanager
def pages(slow: Slow) -> Iterator[str]:
    answers = {
        "/page": lambda accept: Answer(HTTPStatus.OK, f"for {accept}".encode()),
        "/big": lambda _: Answer(HTTPStatus.OK, BIG),
        "/slow": slow.answer,
        "/broken": broken,
    }
    with serving("127.0.0.1", 0, answers) as url:
        yield url


@pytest.fixture
def url(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(server, "SILENT_SECONDS", 3600)  # nobody gets room by waiting
    with pages(slow) as url:
        yield url


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 0), timeout=LONG)


def everything(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(1 << 16):
        received += data
    return received


def ask(url: str, request: bytes) -> bytes:
    """All that the server says to these bytes, after which the client says nothing more."""
    with connect(url) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return everything(connection)


def status(answer: bytes) -> int:
    version, code = answer.split(b" ", 2)[:2]
    assert version in {b"HTTP/1.0", b"HTTP/1.1"}
    return int(code)


def check_answers(url: str, path: str = "page", body: bytes = b"for */*") -> None:
    request = urllib.request.Request(f"{url}/{path}", headers={"Accept": "*/*"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=LONG) as answer:  # noqa: S310 - http
        assert answer.read() == body


@pytest.mark.parametrize("end", [b" HTTP/1.0\r\n\r\n", b" HTTP/1.1\r\n\r\n"], ids=["1.0", "1.1"])
def test_a_connection_has_one_answer_and_ends_with_it(url: str, end: bytes) -> None:
    with connect(url) as connection:
        connection.sendall(3 * (b"GET /page?with=query" + end))
        answer = everything(connection)
    assert (status(answer), answer.count(b"for ")) == (200, 1)


def test_the_answer_to_head_has_no_body(url: str) -> None:
    answer = ask(url, b"HEAD /page HTTP/1.1\r\nAccept: x\r\n\r\n")
    assert b"\r\nContent-Length: 5\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_only_get_and_head_are_answered(url: str) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH"):
        answer = ask(url, f"{method} /page HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello".encode())
        assert status(answer) == 405
        assert b"\r\nAllow: GET, HEAD\r\n" in answer


@pytest.mark.parametrize(
    ("start", "code"),
    [
        (b"GET /", 431),
        (b"GET /page HTTP/1.1\r\nA: ", 431),
        (b"GET /page HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n", 413),
        (b"GET /page HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n", 413),
    ],
    ids=["line", "field", "body", "chunks"],
)
def test_an_endless_request_is_refused_and_not_kept(url: str, start: bytes, code: int) -> None:
    with connect(url) as connection:
        connection.sendall(start + b"a" * (server.HEAD_BYTES + server.BODY_BYTES))
        assert status(connection.recv(1 << 16)) == code


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    line=st.binary() | st.sampled_from([b"GET /page HTTP/1.1", b"HEAD /broken HTTP/1.0"]),
    rest=st.binary(max_size=200),
    end=st.sampled_from([b"", b"\r\n\r\n"]),
)
@example(line=b"GET http://[::1/page HTTP/1.1", rest=b"", end=b"\r\n")
def test_no_bytes_break_the_server_or_get_a_line_in_the_log(
    url: str, caplog: pytest.LogCaptureFixture, line: bytes, rest: bytes, end: bytes
) -> None:
    answer = ask(url, line + b"\r\n" + rest + end)
    assert not answer or status(answer) in {200, 400, 404, 405, 413, 431, 500, 501}
    assert all("a page cannot be built" in record.message for record in caplog.records)


@pytest.mark.parametrize("line", [b"GET /page HTTP/1.1", b"no request"])
def test_a_client_that_goes_before_its_answer_gets_no_line_in_the_log(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    def gone(_: HTTPChannel, __: bytes) -> None:
        raise ClientDisconnected

    monkeypatch.setattr(HTTPChannel, "write_soon", gone)
    assert ask(url, line + b"\r\n\r\n") == b""
    assert not caplog.records


def test_urgent_data_ends_its_connection(url: str) -> None:
    with connect(url) as connection:
        connection.send(b"!", socket.MSG_OOB)
        with suppress(ConnectionResetError):
            assert everything(connection) == b""


def test_a_page_that_breaks_is_a_status_and_a_traceback_in_the_log(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert status(ask(url, b"GET /broken HTTP/1.1\r\n\r\n")) == 500
    assert "ZeroDivisionError" in caplog.text
    check_answers(url)


def test_silent_connections_keep_nobody_waiting(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 50)
    before = own_threads()
    with ExitStack() as stack:
        for number in range(150):
            silent = stack.enter_context(connect(url))
            silent.sendall(b"GET /page HTTP/1.1\r\nA: "[: number % 23])
        check_answers(url)
        assert own_threads() == before
        assert len(before) <= 16
    assert not caplog.records


def own_threads() -> list[str]:
    """Names of the server's threads; other tests in this process may have left some."""
    names = [each.name for each in threading.enumerate()]
    return sorted(name for name in names if name.startswith(("health", "waitress")))


def test_clients_that_do_not_read_keep_no_thread() -> None:
    pages = {"/big": lambda _: Answer(HTTPStatus.OK, BIG)}
    threads = threading.active_count()
    with serving("127.0.0.1", 0, pages) as url, ExitStack() as stack:
        for _ in range(threading.active_count() - threads):
            reads_nothing = stack.enter_context(connect(url))
            reads_nothing.sendall(b"GET /big HTTP/1.1\r\n\r\n")
            assert status(reads_nothing.recv(100)) == 200
        check_answers(url, "big", BIG)


def test_the_oldest_silent_connection_makes_room(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 5)
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(url)) for _ in range(5)]
        check_answers(url)
        assert silent[0].recv(1) == b""
        silent[-1].sendall(b"GET /page HTTP/1.1\r\nAccept: last\r\n\r\n")
        assert b"for last" in everything(silent[-1])


def test_a_page_that_hangs_keeps_no_other_page_waiting(url: str, slow: Slow) -> None:
    with ExitStack() as stack:
        asked = []
        for _ in range(30):
            asked.append(stack.enter_context(connect(url)))
            asked[-1].sendall(b"GET /slow HTTP/1.1\r\n\r\n")
        wait_for(lambda: slow.at_once == server.AT_ONCE, "its threads are busy")
        check_answers(url)
        # Those that got no thread are told to come again; the others get their answer.
        refused = 0
        while refused < 30 - server.AT_ONCE:
            ready = select.select(asked, [], [], LONG)[0]
            assert ready
            for each in ready:
                assert status(everything(each)) == 503
                asked.remove(each)
                refused += 1
        slow.allowed.set()
        assert [b"slow" in everything(each) for each in asked] == [True] * server.AT_ONCE
    check_answers(url, "slow", b"slow")


def test_a_client_that_neither_sends_nor_reads_is_disconnected(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SILENT_SECONDS", 1)
    with pages(slow) as url, connect(url) as reads_nothing:
        reads_nothing.sendall(b"GET /big HTTP/1.1\r\n\r\n")
        assert status(reads_nothing.recv(100)) == 200
        # Each is disconnected after the same time, so the first connection was before these.
        for _ in range(2):
            with connect(url) as silent:
                assert everything(silent) == b""
        assert len(everything(reads_nothing)) < len(BIG)


def test_without_a_free_descriptor_it_does_not_try_without_end(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def accept(_: TcpWSGIServer) -> None:
        tries.append(time.monotonic())
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(TcpWSGIServer, "accept", accept)
        client = connect(url)
        wait_for(lambda: len(tries) >= 3, "it tries again")
    with client:
        client.sendall(b"GET /page HTTP/1.1\r\n\r\n")
        assert status(everything(client)) == 200
    assert tries[2] - tries[0] > 0.19  # seconds: it waits before each


@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]"), ("::", "[::1]")])
def test_ipv6_has_a_url_too(host: str, shown: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving(host, 0, {"/page": lambda _: Answer(HTTPStatus.OK, b"six")}) as url:
        assert url.startswith(f"http://{shown}:")
        check_answers(url, body=b"six")


def test_its_end_ends_every_connection_and_waits_for_no_page(
    slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    before = set(threading.enumerate())
    with pages(slow) as url:
        silent, waits = connect(url), connect(url)
        waits.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
        wait_for(lambda: slow.at_once == 1, "asked")
    assert len(set(threading.enumerate()) - before) == 1  # the page's
    for each in (silent, waits):
        with closing(each):
            assert everything(each) == b""
    slow.allowed.set()
    wait_for(lambda: set(threading.enumerate()) <= before, "the page is built")
    assert not caplog.records
