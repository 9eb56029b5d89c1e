"""A small HTTP server for a few pages, which no client can exhaust or keep from other clients.

One thread reads all requests in an event loop, so a silent or slow client takes a connection and no
thread. Knows as much of HTTP/1.1 as GET and HEAD need; nothing of what the pages say.
"""

import asyncio
import contextlib
import functools
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus

logger = logging.getLogger(__name__)

CONNECTIONS = 256
"""Most open connections. One more takes the place of the one that has been silent for longest."""

HEAD_BYTES = 16 * 1024
"""Longest request line and header fields together; those of Prometheus have about 300 bytes."""

REQUEST_SECONDS = 10.0
"""Time for a client to send a request, and to take its answer."""

LINGER_SECONDS = 1.0
"""Time in which what a client still sends is read after its last answer. Unread, it would make the
system cut the connection, and the client might lose the answer."""

THREADS = 8
"""Most pages that are built at once in threads of their own; further requests wait."""

_REQUEST_LINE = re.compile(r"([A-Z]+) ([!-~]+) HTTP/1\.([01])")
_FIELD = re.compile(r"([!-9;-~]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a page says."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Page:
    """A page.

    Args:
        answer: Builds the answer; its argument is the request's Accept field.
        takes_time: Whether `answer` does more than read attributes. It then runs in a thread.
    """

    answer: Callable[[str], Answer]
    takes_time: bool = False


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that can be answered."""

    path: str
    accept: str
    with_body: bool
    """Whether to send the answer's body, which HEAD does not want."""
    last: bool
    """Whether the client expects the connection to end with the answer."""


class _Refused(Exception):
    """A request that is not answered with a page; afterwards the connection ends."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status)
        self.status = status


@contextlib.contextmanager
def serving(host: str, port: int, pages: Mapping[str, Page]) -> Iterator[str]:
    """Serve until the end of the block; yields the base URL.

    Args:
        host: Name or address to listen on.
        port: Port to listen on; 0 takes a free one.
        pages: The pages by path.

    Raises:
        OSError, OverflowError, UnicodeError: The address or the port cannot be used.
    """
    started: Future[tuple[str, Callable[[], object]]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        connected = _Connections(pages).connected
        try:
            server = await asyncio.start_server(connected, host, port, limit=HEAD_BYTES)
        except (OSError, OverflowError, UnicodeError) as error:
            started.set_exception(error)
            return
        url = _url(*server.sockets[0].getsockname()[:2])
        end = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, stop.set)
        started.set_result((url, end))
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="health", daemon=True)
    thread.start()
    url, end = started.result()
    try:
        yield url
    finally:
        end()
        thread.join()


def _url(address: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - shown only
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


class _Connections:
    """The open connections of a server. Belongs to its event loop."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self._free_threads = asyncio.Semaphore(THREADS)
        self._open = 0
        self._silent: dict[asyncio.StreamWriter, None] = {}
        """Connections without a request, the longest silent first."""

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, one after the other."""
        self._open += 1
        writer.transport.set_write_buffer_limits(0)  # so that `drain` waits for the whole answer
        # A task that ends by being cancelled is an error to asyncio's streams.
        with contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.CancelledError):
            try:
                await self._converse(reader, writer)
            finally:
                self._open -= 1
                writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open > CONNECTIONS:
            if not self._silent:
                await _send(writer, _plain(HTTPStatus.SERVICE_UNAVAILABLE), last=True)
                return  # without lingering
            longest = next(iter(self._silent))
            del self._silent[longest]
            longest.transport.abort()
        last = False
        while not last:
            try:
                request = await self._read(reader, writer)
            except _Refused as refused:
                await _send(writer, _plain(refused.status), last=True)
                break
            last = request.last
            answer = await self._answer(request)
            await _send(writer, answer, with_body=request.with_body, last=last)
        async with asyncio.timeout(LINGER_SECONDS):
            while await reader.read(HEAD_BYTES):
                pass

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Request:
        """Read the next request. Raises `_Refused`, or what ends the connection."""
        self._silent[writer] = None
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise _Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) from None
        finally:
            self._silent.pop(writer, None)
        return _parse(head[:-4].decode("latin-1"))

    async def _answer(self, request: _Request) -> Answer:
        page = self._pages.get(request.path)
        if page is None:
            return Answer(HTTPStatus.NOT_FOUND, f"{', '.join(self._pages)}\n".encode())
        if not page.takes_time:
            return _built(page, request.accept)
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._free_threads.acquire()
        except TimeoutError:
            return _plain(HTTPStatus.SERVICE_UNAVAILABLE)
        return await self._in_thread(page, request.accept)

    def _in_thread(self, page: Page, accept: str) -> "asyncio.Future[Answer]":
        """Build the answer in a thread, and free its place when it ends, however late."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Answer] = loop.create_future()

        def settle(answer: Answer) -> None:
            self._free_threads.release()
            if not done.done():
                done.set_result(answer)

        def build() -> None:
            answer = _built(page, accept)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, answer)

        # Not one of Python's pools, for whose threads the process would wait at its end.
        threading.Thread(target=build, name="page", daemon=True).start()
        return done


def _built(page: Page, accept: str) -> Answer:
    try:
        return page.answer(accept)
    except Exception:
        logger.exception("a page cannot be built")
        return _plain(HTTPStatus.INTERNAL_SERVER_ERROR)


def _parse(head: str) -> _Request:
    """Read the head of a request, without the empty line at its end. Raises `_Refused`."""
    first, *rest = head.split("\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    fields: dict[str, str] = {}
    for field in map(_FIELD.fullmatch, rest):
        if field is None:
            raise _Refused(HTTPStatus.BAD_REQUEST)
        name, value = field[1].lower(), field[2].strip()
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    if line is None:
        raise _Refused(HTTPStatus.BAD_REQUEST)
    method, target, minor = line.groups()
    if method not in {"GET", "HEAD"}:
        raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED)
    connection = fields.get("connection", "").lower()
    # The body of a request is not read, so no further request can follow it.
    has_body = fields.get("content-length", "0") != "0" or "transfer-encoding" in fields
    return _Request(
        path=target.partition("?")[0],
        accept=fields.get("accept", ""),
        with_body=method == "GET",
        last=has_body or minor == "0" or "close" in connection,
    )


def _plain(status: HTTPStatus) -> Answer:
    return Answer(status, f"{status.phrase}\n".encode())


async def _send(
    writer: asyncio.StreamWriter, answer: Answer, *, with_body: bool = True, last: bool
) -> None:
    """Send an answer; the last one ends what is sent."""
    fields = {
        "Content-Type": answer.content_type,
        "Content-Length": str(len(answer.body)),
        "Connection": "close" if last else "keep-alive",
    }
    if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
        fields["Allow"] = "GET, HEAD"
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    head = f"HTTP/1.1 {answer.status} {answer.status.phrase}\r\n{lines}\r\n"
    writer.write(head.encode("latin-1") + (answer.body if with_body else b""))
    async with asyncio.timeout(REQUEST_SECONDS):
        await writer.drain()
    if last:
        writer.write_eof()
