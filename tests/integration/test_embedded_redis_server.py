"""Real embedded servers: started, found, shared, stopped, killed, restarted."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier
from typing import IO, Any

import pytest
import redis

from tests.support.processes import REAL, ROOT, Worker
from tests.support.stubs import message
from worker.broker import embedded
from worker.broker.embedded import EmbeddedRedisError, find, redis_url, start
from worker.broker.urls import without_password

OWNER = """
import sys, time
from pathlib import Path
from worker.broker.embedded import start
with start(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""
"""A process that owns a server until its standard input ends."""


def _owner(data_dir: Path) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_started_server_is_found_and_is_gone_after_the_block(tmp_path: Path) -> None:
    with start(tmp_path) as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
            assert client.info("server")["process_id"] == server.pid
        assert find(tmp_path) == server
    assert not _runs(server.pid)
    assert find(tmp_path) is None
    assert not (tmp_path / "redis" / "server.json").exists()


def test_it_keeps_every_write_and_never_evicts(tmp_path: Path) -> None:
    with start(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        settings = client.config_get("appendonly", "appendfsync", "maxmemory-policy", "save")
    assert settings == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
    }


def test_it_refuses_messages_before_the_machines_memory_is_full(tmp_path: Path) -> None:
    with start(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        limit = int(client.config_get("maxmemory")["maxmemory"])
        assert 0.4 < limit / client.info("memory")["total_system_memory"] < 0.6


def test_it_listens_on_a_socket_in_its_folder_and_on_no_port(tmp_path: Path) -> None:
    with start(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert server.url == f"unix://{tmp_path}/redis/redis.sock?db=0"
        assert client.config_get("port", "tls-port", "unixsocketperm") == {
            "port": "0",
            "tls-port": "0",
            "unixsocketperm": "700",
        }


# A socket's path may have about 100 bytes, and a URL is UTF-8.
NO_PLACE_FOR_A_SOCKET = ["long" * 30, os.fsdecode(b"not \xff utf-8")]


@pytest.fixture(params=NO_PLACE_FOR_A_SOCKET, ids=["long", "not utf-8"])
def without_socket(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_without_a_socket_it_listens_on_loopback_with_a_random_password(
    without_socket: Path, tmp_path: Path
) -> None:
    with start(without_socket) as server, start(tmp_path / ("other" * 30)) as other:
        address = re.fullmatch(r"redis://:([0-9a-f]{64})@127\.0\.0\.1:(\d+)/0", server.url)
        assert address
        assert address[1] not in other.url
        assert int(address[2]) in embedded.PORTS
        with redis.Redis.from_url(server.url) as client:
            assert client.config_get("bind") == {"bind": "127.0.0.1"}
        assert find(without_socket) == server
        for wrong in (server.url.replace(address[1], "guess"), f"redis://127.0.0.1:{address[2]}"):
            with (
                redis.Redis.from_url(wrong) as stranger,
                pytest.raises(redis.exceptions.AuthenticationError),
            ):
                stranger.ping()
        if sys.platform == "linux":
            arguments = Path(f"/proc/{server.pid}/cmdline").read_bytes()
            assert address[1].encode() not in arguments, "which every user can see"
            # Bound to loopback alone, the port is free on another address of this machine.
            with socket.socket() as elsewhere:
                elsewhere.bind(("127.0.0.2", int(address[2])))
        for file in (without_socket / "redis").glob("server.*"):
            holds_it = address[1] in file.read_text()
            assert holds_it == (file.suffix in {".conf", ".json"})
            if holds_it:
                assert file.stat().st_mode & 0o077 == 0


def test_a_file_system_without_sockets_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    monkeypatch.setattr(embedded, "_is_free", lambda _: True)
    with start(tmp_path) as server:
        assert server.url.startswith("redis://:")
        assert find(tmp_path) == server


def test_a_name_with_any_character_names_its_socket(tmp_path: Path) -> None:
    for name in ("with space", "q?d#%2F@:;&=", "ümlaut", "new\nline"):
        with start(tmp_path / name) as server, redis.Redis.from_url(server.url) as client:
            assert server.url.startswith("unix:")
            assert client.ping()
            assert find(tmp_path / name) == server


def test_servers_of_two_folders_do_not_know_each_other(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / ("a" * 100), tmp_path / ("b" * 100)]
    with ExitStack() as stack:
        servers = [stack.enter_context(start(folder)) for folder in folders]
        assert [find(folder) for folder in folders] == servers
        assert len({server.url for server in servers}) == 4
        for number, server in enumerate(servers):
            with redis.Redis.from_url(server.url) as client:
                assert client.dbsize() == 0
                client.set("number", number)


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can act as another user")
@pytest.mark.parametrize("name", ["data", "long" * 30])
def test_another_user_of_the_machine_does_not_reach_it(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder, start(Path(folder) / name) as server:
        for entry in (Path(folder), Path(folder) / name):
            entry.chmod(0o755)
        port = server.url.rpartition(":")[2].removesuffix("/0")
        address = port if port.isdecimal() else str(Path(folder) / name / "redis" / "redis.sock")
        assert re.search("Permission denied|-NOAUTH", _said_to(65534, address))
        assert re.search(":0|-NOAUTH", _said_to(0, address)), "the address is right"


ASK = """
import os, socket, sys
user, address = int(sys.argv[1]), sys.argv[2]
os.setgroups([])
os.setgid(user)
os.setuid(user)
try:
    if address.isdecimal():
        client = socket.socket()
        client.connect(("127.0.0.1", int(address)))
    else:
        client = socket.socket(socket.AF_UNIX)
        client.connect(address)
    client.sendall(b"DBSIZE\\r\\n")
    print(client.recv(1000))
except OSError as error:
    print(error)
"""


def _said_to(user: int, address: str) -> str:
    command = [sys.executable, "-c", ASK, str(user), address]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_folder_that_others_can_enter_is_neither_used_nor_believed(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    with start(tmp_path) as server:
        folder.chmod(0o711)
        assert find(tmp_path) is None
        folder.chmod(0o700)
        assert find(tmp_path) == server
    folder.chmod(0o750)
    with (
        pytest.raises(EmbeddedRedisError, match=r"redis is open .*: run `chmod 700` "),
        start(tmp_path),
    ):
        pass


def test_a_folder_of_another_user_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(tmp_path):
        stranger = (tmp_path / "redis").stat().st_uid + 1
        monkeypatch.setattr(os, "geteuid", lambda: stranger)
        assert find(tmp_path) is None


def test_its_data_is_closed_to_other_users(tmp_path: Path) -> None:
    with start(tmp_path):
        assert (tmp_path / "redis").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["data", "long" * 30])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_data_survives_a_restart_at_the_same_url(
    tmp_path: Path, name: str, end: signal.Signals
) -> None:
    data_dir = tmp_path / name
    with start(data_dir) as first, redis.Redis.from_url(first.url) as client:
        client.rpush("queue", "message")
        os.kill(first.pid, end)
        _wait_until(lambda: find(data_dir) is None)
    with start(data_dir) as second, redis.Redis.from_url(second.url) as client:
        assert second.url == first.url
        assert client.lrange("queue", 0, -1) == [b"message"]


def test_a_taken_port_is_replaced_and_so_is_the_password(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 30)
    with start(data_dir) as first:
        pass
    port = int(first.url.rpartition(":")[2].removesuffix("/0"))
    with socket.create_server(("127.0.0.1", port)), start(data_dir) as second:
        assert second.url.rpartition(":")[2] != first.url.rpartition(":")[2]
        assert second.url[:74] != first.url[:74]


def test_a_server_that_hangs_is_killed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "STOP_SECONDS", 0.1)
    with start(tmp_path) as server:
        os.kill(server.pid, signal.SIGSTOP)
    assert not _runs(server.pid)


def test_it_ends_with_an_owner_that_ends(tmp_path: Path) -> None:
    owner, server = _owner(tmp_path)
    owner.communicate("")
    assert owner.returncode == 0
    assert not _runs(server)


def test_it_ends_cleanly_with_an_owner_that_is_killed(tmp_path: Path) -> None:
    owner, _ = _owner(tmp_path)
    owner.kill()
    owner.communicate()
    log = tmp_path / "redis" / "server.log"
    _wait_until(lambda: "ready to exit" in log.read_text())


def test_ctrl_c_in_the_terminal_leaves_it_to_its_owner(tmp_path: Path) -> None:
    with start(tmp_path) as server:
        assert os.getpgid(server.pid) != os.getpgrp()
        assert os.getsid(server.pid) != os.getsid(0)


def test_the_state_of_a_killed_owner_is_stale_and_replaced(tmp_path: Path) -> None:
    owner, _ = _owner(tmp_path)
    state_file = tmp_path / "redis" / "server.json"
    stale = json.loads(state_file.read_text())
    assert (tmp_path / "redis" / "redis.sock").is_socket()
    owner.kill()
    owner.communicate()
    _wait_until(lambda: find(tmp_path) is None)
    assert json.loads(state_file.read_text()) == stale
    with start(tmp_path) as next_server:
        assert json.loads(state_file.read_text())["pid"] == next_server.pid


@pytest.mark.parametrize("name", ["b", "long" * 30])
def test_a_state_of_another_run_is_not_taken_for_it(tmp_path: Path, name: str) -> None:
    with start(tmp_path / name) as server:
        state_file = tmp_path / name / "redis" / "server.json"
        state = json.loads(state_file.read_text())
        for change in ({"run_id": "0" * 40}, {"pid": 1}, {"port": 1, "password": "guess"}):
            state_file.write_text(json.dumps(state | change))
            assert find(tmp_path / name) is None
        state_file.write_text(json.dumps(state))
        assert find(tmp_path / name) == server


def test_of_two_that_start_at_once_one_starts_and_both_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    barrier = Barrier(2)
    spawn = embedded._spawn

    def noted_spawn(log: IO[bytes], address: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401
        started.append(address)
        return spawn(log, address)

    def command() -> str:
        barrier.wait()
        with redis_url(None, data_dir=tmp_path, start_if_missing=True) as url:
            barrier.wait()
            return url

    monkeypatch.setattr(embedded, "_spawn", noted_spawn)
    with ThreadPoolExecutor(2) as pool:
        one, other = [future.result() for future in [pool.submit(command) for _ in range(2)]]
    assert one == other
    assert len(started) == 1


@pytest.mark.parametrize("name", ["data", "long" * 30])
def test_a_second_start_on_the_same_data_is_refused_without_the_password(
    tmp_path: Path, name: str
) -> None:
    with start(tmp_path / name) as server:
        shown = re.escape(without_password(server.url))
        with (
            pytest.raises(EmbeddedRedisError, match=rf"in use by the Redis at {shown} ") as refused,
            start(tmp_path / name),
        ):
            pass
        assert not re.search("[0-9a-f]{64}", str(refused.value))


@pytest.mark.parametrize("name", ["short", "long" * 30])
def test_every_command_in_the_folder_finds_it_and_none_shows_the_password(
    tmp_path: Path, tiny_checkpoint: Path, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    file = folder / "messages.jsonl"
    file.write_text(f"{message().model_dump_json()}\n")
    code = (
        "from worker.client import SQEMessage, result, submit; "
        "m = SQEMessage.create(agent_id='a', prompt='p', completion='c'); "
        "print(result(submit(m)).checkpoint)"
    )
    with Worker.start(REAL, folder, "", "--checkpoint", str(tiny_checkpoint)) as worker:
        worker.wait_until_ready()
        for command in (
            [REAL[0], "submit", "--data-path", str(file), "--json"],
            [sys.executable, "-c", code],
        ):
            done = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "SQE_REDIS_URL": ""},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        assert worker.total("evaluations_total") == 2
        log = worker.log.read_text()
        state = json.loads((folder / ".sqe" / "redis" / "server.json").read_text())
    assert (state["password"] is None) == (name == "short")
    assert "using the embedded Redis at " in log
    assert str(state["password"]) not in log + done.stdout + done.stderr


def test_a_running_server_is_shared_and_left_running(tmp_path: Path) -> None:
    with start(tmp_path) as server:
        for start_if_missing in (True, False):
            with redis_url(None, data_dir=tmp_path, start_if_missing=start_if_missing) as url:
                assert url == server.url
        assert _runs(server.pid)


def test_a_server_that_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    with start(tmp_path):
        pass
    (tmp_path / "redis" / "appendonlydir" / "appendonly.aof.manifest").write_text("no manifest\n")
    with (
        pytest.raises(EmbeddedRedisError, match=r"ended with status 1 \(.*\): see ") as refused,
        start(tmp_path),
    ):
        pass
    assert "\n" not in str(refused.value)
    assert str(tmp_path / "redis" / "server.log") in str(refused.value)
