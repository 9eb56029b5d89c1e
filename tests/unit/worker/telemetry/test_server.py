"""worker.telemetry.server: what any client may do, and what it cannot do to other clients."""

import http.client
import logging
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http import HTTPStatus
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.processes import wait_for
from worker.telemetry import server
from worker.telemetry.server import Answer, Page, serving

SOON = 5.0
"""Seconds within which any page answers on a busy machine: half of what a silent client has."""

BIG = b"x" * 16_000_000
"""More than the buffers of a connection hold."""


class Slow:
    """A page that is built only when it is allowed to."""

    def __init__(self) -> None:
        self.allowed = threading.Event()
        self.at_once = 0

    def answer(self, _: str) -> Answer:
        self.at_once += 1
        self.allowed.wait(60)
        return Answer(HTTPStatus.OK, b"slow")


def broken(_: str) -> Answer:
    raise ZeroDivisionError


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.allowed.set()


@pytest.fixture
def url(slow: Slow) -> Iterator[str]:
    pages = {
        "/page": Page(lambda accept: Answer(HTTPStatus.OK, f"for {accept}".encode())),
        "/threaded": Page(lambda _: Answer(HTTPStatus.OK, b"threaded"), takes_time=True),
        "/big": Page(lambda _: Answer(HTTPStatus.OK, BIG)),
        "/slow": Page(slow.answer, takes_time=True),
        "/broken": Page(broken, takes_time=True),
    }
    with serving("127.0.0.1", 0, pages) as url:
        yield url


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 0), timeout=30)


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
    assert version == b"HTTP/1.1"
    return int(code)


def check_soon(url: str) -> None:
    """Both kinds of pages answer soon."""
    for path, body in (("page", b"for */*"), ("threaded", b"threaded")):
        request = urllib.request.Request(f"{url}/{path}", headers={"Accept": "*/*"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=SOON) as answer:  # noqa: S310 - http
            assert answer.read() == body


def test_one_connection_serves_several_requests(url: str) -> None:
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port)) as connection:
        for accept in ("a", "b"):
            connection.request("GET", "/page?with=query", headers={"Accept": accept})
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, f"for {accept}".encode())
        connection.request("HEAD", "/page", headers={"Accept": "c"})
        answer = connection.getresponse()
        assert (answer.getheader("Content-Length"), answer.read()) == ("5", b"")


@pytest.mark.parametrize(
    "end", [b" HTTP/1.0\r\n\r\n", b" HTTP/1.1\r\nConnection: Close\r\n\r\n"], ids=["1.0", "close"]
)
def test_the_connection_ends_with_the_answer_if_the_client_says_so(url: str, end: bytes) -> None:
    with connect(url) as connection:
        connection.sendall(b"GET /page" + end)
        assert everything(connection).endswith(b"\r\n\r\nfor ")


def test_only_get_and_head_are_answered(url: str) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH"):
        answer = ask(url, f"{method} /page HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello".encode())
        assert status(answer) == 405
        assert b"\r\nAllow: GET, HEAD\r\n" in answer


def test_a_body_is_never_taken_for_another_request(url: str) -> None:
    hidden = b"GET /page HTTP/1.1\r\n\r\n"
    for field in (f"Content-Length: {len(hidden)}", "Transfer-Encoding: chunked"):
        answer = ask(url, f"GET /page HTTP/1.1\r\n{field}\r\n\r\n".encode() + hidden)
        assert (status(answer), answer.count(b"HTTP/1.1")) == (200, 1)


@pytest.mark.parametrize(
    "request_line",
    [
        *(b"", b"GET", b"GET /page", b"GET  /page HTTP/1.1", b"get /page HTTP/1.1"),
        *(b"GET /page HTTP/2", b"GET /page HTTP/1.1 x", b"GET /pa\xffge HTTP/1.1"),
        *(b"\x16\x03\x01\x02\x00\x01\x00\x01", b"GET /page HTTP/1.1\nA: b", b"*1 $4 PING"),
    ],
)
def test_what_is_no_request_is_refused(url: str, request_line: bytes) -> None:
    assert status(ask(url, request_line + b"\r\n\r\n")) == 400


@pytest.mark.parametrize(
    "field", [b"no colon", b" : x", b": x", b"A b: c", b"Accept: a\nSet-Cookie: b", b"A: \x00"]
)
def test_what_is_no_header_field_is_refused(url: str, field: bytes) -> None:
    assert status(ask(url, b"GET /page HTTP/1.1\r\n" + field + b"\r\n\r\n")) == 400


@pytest.mark.parametrize("start", [b"GET /", b"GET /page HTTP/1.1\r\nA: "], ids=["line", "field"])
def test_an_endless_head_is_refused_and_not_kept(url: str, start: bytes) -> None:
    with connect(url) as connection:
        connection.sendall(start + b"a" * (server.HEAD_BYTES + 1))
        assert status(connection.recv(1 << 16)) == 431


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    line=st.binary() | st.sampled_from([b"GET /page HTTP/1.1", b"HEAD /broken HTTP/1.0"]),
    rest=st.binary(max_size=200),
    end=st.sampled_from([b"", b"\r\n\r\n"]),
)
def test_no_bytes_break_the_server(
    url: str, caplog: pytest.LogCaptureFixture, line: bytes, rest: bytes, end: bytes
) -> None:
    answer = ask(url, line + b"\r\n" + rest + end)
    assert not answer or status(answer) in {200, 400, 404, 405, 431, 500}
    assert all("a page cannot be built" in record.message for record in caplog.records)


def test_a_page_that_breaks_is_a_status_and_a_traceback_in_the_log(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert status(ask(url, b"GET /broken HTTP/1.1\r\n\r\n")) == 500
    assert "ZeroDivisionError" in caplog.text
    check_soon(url)


def test_silent_connections_keep_nobody_waiting(url: str) -> None:
    threads = threading.active_count()
    with ExitStack() as stack:
        for number in range(100):
            silent = stack.enter_context(connect(url))
            silent.sendall(b"GET /page HTTP/1.1\r\nA: "[:number])
        check_soon(url)
        assert threading.active_count() <= threads + 1


def test_a_client_that_does_not_read_keeps_nobody_waiting(url: str) -> None:
    with ExitStack() as stack:
        for _ in range(server.THREADS):
            stack.enter_context(connect(url)).sendall(b"GET /big HTTP/1.1\r\n\r\n")
        check_soon(url)


def test_the_connection_that_was_silent_for_longest_makes_room(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 5)
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(url)) for _ in range(5)]
        check_soon(url)
        assert silent[0].recv(1) == b""
        silent[-1].sendall(b"GET /page HTTP/1.1\r\nAccept: last\r\n\r\n")
        assert silent[-1].recv(1 << 16).endswith(b"for last")


def test_with_every_connection_at_work_a_further_one_is_told_so(
    url: str, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 3)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(url)).sendall(b"GET /slow HTTP/1.1\r\n\r\n")
        wait_for(lambda: slow.at_once == 3, "three pages are built")
        assert status(stack.enter_context(connect(url)).recv(1 << 16)) == 503


def test_pages_that_take_long_have_a_bounded_number_of_threads(
    url: str, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.5)
    with ExitStack() as stack:
        asked = []
        for _ in range(server.THREADS + 3):
            asked.append(stack.enter_context(connect(url)))
            asked[-1].sendall(b"GET /slow HTTP/1.1\r\nConnection: close\r\n\r\n")
        wait_for(lambda: slow.at_once == server.THREADS, "threads are busy")
        with closing(connect(url)) as other:
            other.sendall(b"GET /page HTTP/1.1\r\n\r\n")
            assert status(other.recv(1 << 16)) == 200
        # Those that got no thread are told to come again; the others get their answer.
        assert sorted(map(status, map(everything, asked[server.THREADS :]))) == [503] * 3
        assert slow.at_once == server.THREADS < 16
        slow.allowed.set()
        for each in asked[: server.THREADS]:
            assert everything(each).endswith(b"slow")
    check_soon(url)


def test_a_silent_or_endless_client_is_disconnected(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.2)
    with connect(url) as reads_nothing:
        reads_nothing.sendall(b"GET /big HTTP/1.1\r\n\r\n")
        # Each is disconnected after the same time, so the first connection was before these.
        for _ in range(2):
            with connect(url) as silent:
                assert everything(silent) == b""
        assert len(everything(reads_nothing)) < len(BIG)


@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]"), ("::", "[::1]")])
def test_ipv6_has_a_url_too(host: str, shown: str) -> None:
    pages = {"/page": Page(lambda _: Answer(HTTPStatus.OK, b"six"))}
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving(host, 0, pages) as url:
        assert url.startswith(f"http://{shown}:")
        with urllib.request.urlopen(f"{url}/page") as answer:  # noqa: S310 - http
            assert answer.read() == b"six"


def test_its_end_ends_every_connection_and_its_thread(
    slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with serving("127.0.0.1", 0, {"/slow": Page(slow.answer, takes_time=True)}) as url:
        silent, waits = connect(url), connect(url)
        waits.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
        wait_for(lambda: slow.at_once == 1, "asked")
    for each in (silent, waits):
        with closing(each):
            assert everything(each) == b""
    assert "health" not in [thread.name for thread in threading.enumerate()]
    assert not caplog.records
