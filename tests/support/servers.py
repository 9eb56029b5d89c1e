"""Redis servers that a test sets up itself, and what may stand between one and its clients."""

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import redis

from tests.support.processes import wait_for
from worker.broker import embedded
from worker.child import end_child, start_child

OPTIONS = ("--save", "", "--repl-diskless-sync-delay", "0")
"""No files, and no pause in case that more replicas come."""


@dataclass(frozen=True)
class Server:
    """A server's process, and a client of it that may do everything."""

    port: int
    store: redis.Redis
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def follow(self, primary: "Server | None") -> None:
        """Make this a replica of `primary`, or a primary."""
        to = ("NO", "ONE") if primary is None else ("127.0.0.1", str(primary.port))
        self.store.execute_command("REPLICAOF", *to)  # type: ignore[no-untyped-call]

    def signal(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def is_following(self) -> bool:
        return self.store.info("replication").get("master_link_status") == "up"


def answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.RedisError):
        return bool(client.ping())
    return False


def server(folder: Path, *options: str, port: int = 0) -> contextlib.AbstractContextManager[Server]:
    """A server with `options` on a free port; or on `port`, with the data of the one before."""
    return _running(folder, port, "", *OPTIONS, *options)


@contextlib.contextmanager
def pair(folder: Path) -> Iterator[tuple[Server, Server]]:
    """A primary and its replica."""
    with server(folder) as primary, server(folder) as replica:
        replica.follow(primary)
        wait_for(replica.is_following, "replicating")
        yield primary, replica


def sentinel(folder: Path, name: str, primary: Server) -> contextlib.AbstractContextManager[Server]:
    """A Sentinel that soon decides alone that `primary` is down; `name` is what it calls it."""
    config = (
        f"sentinel monitor {name} 127.0.0.1 {primary.port} 1\n"
        f"sentinel down-after-milliseconds {name} 500\n"
        f"sentinel failover-timeout {name} 3000\n"
    )
    return _running(folder, 0, config, "--sentinel")


@contextlib.contextmanager
def _running(folder: Path, port: int, config: str, *options: str) -> Iterator[Server]:
    port = port or embedded._free_port()
    place = folder / f"server-{port}"
    place.mkdir(exist_ok=True)
    (place / "server.conf").write_text(config)
    command = [embedded._program(), "server.conf", "--port", str(port), *options]
    with (place / "log").open("ab") as log:
        process = start_child(command, log=log, cwd=place)
    with redis.Redis("127.0.0.1", port) as store:
        try:
            wait_for(lambda: answers(store), f"a server on port {port}")
            yield Server(port, store, process)
        finally:
            end_child(process)


@dataclass
class Proxy:
    """A port that leads to a server; new connections follow a change of `target`, open ones stay.

    So does a name or an address that moves to another server during a failover.
    """

    target: int
    rewrite: Callable[[bytes], bytes] = field(default=lambda data: data)
    """Changes a reply of the server on its way to the client."""
    delay: float = 0.0
    """Seconds for which everything is on its way, in each direction."""
    port: int = 0

    @contextlib.contextmanager
    def running(self) -> Iterator["Proxy"]:
        self._loop = asyncio.new_event_loop()
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self._passing = asyncio.Event()
        self._passing.set()
        self.port = embedded._free_port()
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        self._do(self._listen())
        try:
            yield self
        finally:
            self._do(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def cut(self) -> None:
        """Reset every open connection."""
        self._do(self._cut())

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Nobody listens, and every open connection is reset."""
        self._do(self._end())
        try:
            yield
        finally:
            self._do(self._listen())

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Nothing arrives in either direction, and nothing is reset."""
        self._loop.call_soon_threadsafe(self._passing.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._passing.set)

    def _do(self, step: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, self._loop).result()

    async def _listen(self) -> None:
        self._listening = await asyncio.start_server(self._connect, "127.0.0.1", self.port)

    async def _end(self) -> None:
        self._listening.close()
        await self._cut()

    async def _cut(self) -> None:
        ending = list(self._open.values())
        for each in self._open:
            each.transport.abort()
        if ending:
            await asyncio.wait(ending)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        self._open[writer] = cast("asyncio.Task[None]", asyncio.current_task())
        # A task that ends by being cancelled is an error to asyncio's streams.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            writers.append(far_writer)
            await asyncio.gather(
                self._copy(reader, far_writer, lambda data: data),
                self._copy(far_reader, writer, self.rewrite),
            )
        for each in writers:
            each.transport.abort()
        del self._open[writer]

    async def _copy(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        change: Callable[[bytes], bytes],
    ) -> None:
        with contextlib.suppress(OSError), contextlib.closing(sink):
            while data := await source.read(1 << 16):
                await asyncio.sleep(self.delay)
                await self._passing.wait()
                sink.write(change(data))
                await sink.drain()
