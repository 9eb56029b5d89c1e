"""A few pages over HTTP, which no client can exhaust or keep from other clients.

The server is waitress: one thread reads and writes all connections, so a silent or slow client
takes a connection and no thread, and a few threads build the answers. Knows what waitress leaves
open about who gets a connection and a thread; nothing of what the pages say.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

logger = logging.getLogger(__name__)

CONNECTIONS = 256
"""Most open connections. One more takes the place of the oldest without a request."""

HEAD_BYTES = 16 * 1024
"""Longest request line and header fields together; those of Prometheus have about 300 bytes."""

BODY_BYTES = 16 * 1024
"""Longest body of a request, which nobody reads."""

SILENT_SECONDS = 10
"""Longest time in which a client neither sends a part of a request nor takes one of its answer."""

AT_ONCE = 2
"""Most threads for one page. Pages are built in Python, so more would not be faster."""

PATIENCE = 0.5
"""Seconds without a built answer, after which requests for a page whose threads are all busy are
refused. Those of a page that hangs would otherwise wait in the other pages' threads."""

END_SECONDS = 0.5
"""Time for the answers that are being built when the server ends."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A page's answer to a request."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Page = Callable[[str], Answer]
"""Function that builds a page's answer. Its argument is the request's Accept field."""


@contextlib.contextmanager
def serving(host: str, port: int, pages: Mapping[str, Page]) -> Iterator[str]:
    """Serve until the end of the block; yields the base URL.

    Args:
        host: Name or address to listen on.
        port: Port to listen on; 0 takes a free one.
        pages: Builds each page, by path.

    Raises:
        OSError, ValueError: The address or the port cannot be used.
    """
    # Below this level, waitress logs lines that any client can cause. Pages log their own errors.
    logging.getLogger("waitress").setLevel(logging.ERROR)
    options = Adjustments(
        host=host,
        port=port,
        asyncore_use_poll=True,  # select() fails for descriptors above 1,023
        channel_timeout=SILENT_SECONDS,
        cleanup_interval=1,
        # Reached only while that many requests wait for a thread.
        connection_limit=2 * CONNECTIONS,
        log_socket_errors=False,
        max_request_header_size=HEAD_BYTES,
        max_request_body_size=BODY_BYTES,
        # Above it, a thread would wait until the client reads.
        outbuf_high_watermark=1 << 40,
    )
    sockets: dict[int, wasyncore.dispatcher] = {}
    threads = ThreadedTaskDispatcher()
    try:
        # A name such as localhost may have several addresses.
        servers = [
            _Server(_application(pages), sockets, dispatcher=threads, adj=options, sockinfo=address)
            for address in options.listen
        ]
    except BaseException:
        wasyncore.close_all(sockets)
        raise
    server = servers[0]
    threads.set_thread_count(len(pages) * AT_ONCE + 1)
    loop = threading.Thread(target=server.run, name="health", daemon=True)
    loop.start()
    try:
        yield _url(server.effective_host, int(server.effective_port))
    finally:
        threads.shutdown(timeout=END_SECONDS)
        server.trigger.pull_trigger(lambda: wasyncore.close_all(sockets))
        loop.join()


def _url(address: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - shown only
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


class _Request(HTTPRequestParser):
    """A request."""

    path = ""
    """Set by waitress only in a request without an error, but read after a client has gone, too."""


class _Channel(HTTPChannel):
    """A connection that ends, without a line in the log, if it brings what waitress cannot read."""

    parser_class = _Request

    def close(self) -> None:
        """End, and close the files in which large answers wait, at the server's end as well."""
        self.handle_close()

    def handle_error(self) -> None:
        """End after an exception, which some malformed URLs are to waitress."""
        self.handle_close()

    def handle_expt(self) -> None:
        """End after urgent data, which nobody reads and poll() would report for ever."""
        self.handle_close()


class _Server(TcpWSGIServer):
    """A listening socket, and its connections."""

    channel_class = _Channel

    def accept(self) -> object:
        """Take a connection; without a free descriptor, wait a moment before the next try."""
        try:
            return super().accept()
        except OSError:
            time.sleep(0.1)
            raise

    def handle_accept(self) -> None:
        """Take a connection; one too many takes the place of the oldest without a request.

        waitress would take no more until one ends, so that silent clients could keep out others.
        """
        super().handle_accept()
        if len(self.active_channels) > CONNECTIONS:
            for channel in self.active_channels.values():  # the oldest first
                if not (channel.requests or channel.will_close):
                    channel.will_close = True
                    break


class _Shared:
    """A page, and its share of the threads."""

    def __init__(self, build: Page) -> None:
        self._build = build
        self._free = threading.Semaphore(AT_ONCE)
        self._moved = time.monotonic()

    def answer(self, accept: str) -> Answer:
        patience = self._moved + PATIENCE - time.monotonic()
        if not self._free.acquire(timeout=max(0.0, patience)):
            return _plain(HTTPStatus.SERVICE_UNAVAILABLE)
        self._moved = time.monotonic()
        try:
            return self._build(accept)
        except Exception:
            logger.exception("a page cannot be built")
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR)
        finally:
            self._moved = time.monotonic()
            self._free.release()


def _application(builders: Mapping[str, Page]) -> WSGIApplication:
    pages = {path: _Shared(build) for path, build in builders.items()}

    def answer(environ: WSGIEnvironment) -> Answer:
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED)
        page = pages.get(environ["PATH_INFO"])
        if page is None:
            return Answer(HTTPStatus.NOT_FOUND, f"{', '.join(pages)}\n".encode())
        return page.answer(environ.get("HTTP_ACCEPT", ""))

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        said = answer(environ)
        fields = [("Content-Type", said.content_type)]
        if said.status == HTTPStatus.METHOD_NOT_ALLOWED:
            fields.append(("Allow", "GET, HEAD"))
        with_body = environ["REQUEST_METHOD"] != "HEAD"
        if not with_body:
            fields.append(("Content-Length", str(len(said.body))))
        start_response(f"{said.status} {said.status.phrase}", fields)
        # A body of unknown length makes waitress end the connection with it. A client that sends
        # many requests at once and reads nothing thus has one answer in memory, not hundreds.
        return iter((said.body,)) if with_body else ()

    return application


def _plain(status: HTTPStatus) -> Answer:
    return Answer(status, f"{status.phrase}\n".encode())
