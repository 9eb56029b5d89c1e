"""Real embedded servers: started, found, shared, stopped, killed, restarted."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import IO

import pytest
import redis

from worker.broker import embedded
from worker.broker.embedded import EmbeddedRedisError, find, redis_url, start

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
        assert server.port in embedded.PORTS
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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is no address of its own")
def test_it_listens_on_loopback_only(tmp_path: Path) -> None:
    with start(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert client.config_get("bind", "protected-mode") == {
            "bind": "127.0.0.1",
            "protected-mode": "yes",
        }
        # Bound to loopback alone, the port is free on another address of this machine.
        with socket.socket() as other:
            other.bind(("127.0.0.2", server.port))


def test_its_data_is_closed_to_other_users(tmp_path: Path) -> None:
    with start(tmp_path):
        assert (tmp_path / "redis").stat().st_mode & 0o077 == 0


def test_data_survives_a_restart_at_the_same_port(tmp_path: Path) -> None:
    with start(tmp_path) as first, redis.Redis.from_url(first.url) as client:
        client.rpush("queue", "message")
    with start(tmp_path, port=first.port) as second, redis.Redis.from_url(second.url) as client:
        assert second.port == first.port
        assert client.lrange("queue", 0, -1) == [b"message"]


def test_data_survives_a_killed_server(tmp_path: Path) -> None:
    with start(tmp_path) as first, redis.Redis.from_url(first.url) as client:
        client.rpush("queue", "message")
        os.kill(first.pid, signal.SIGKILL)
        _wait_until(lambda: find(tmp_path) is None)
    with start(tmp_path, port=first.port) as second, redis.Redis.from_url(second.url) as client:
        assert client.lrange("queue", 0, -1) == [b"message"]


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
    owner.kill()
    owner.communicate()
    _wait_until(lambda: find(tmp_path) is None)
    assert json.loads(state_file.read_text()) == stale
    with start(tmp_path) as next_server:
        assert json.loads(state_file.read_text())["pid"] == next_server.pid


def test_another_server_at_the_noted_port_is_not_taken_for_it(tmp_path: Path) -> None:
    with start(tmp_path / "a") as server:
        state_file = tmp_path / "b" / "redis" / "server.json"
        state_file.parent.mkdir(parents=True)
        state = json.loads((tmp_path / "a" / "redis" / "server.json").read_text())
        state_file.write_text(json.dumps(state))
        assert find(tmp_path / "b") == server
        state_file.write_text(json.dumps(state | {"run_id": "0" * 40}))
        assert find(tmp_path / "b") is None


def test_of_two_that_start_at_once_one_starts_and_both_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    barrier = Barrier(2)
    spawn = embedded._spawn

    def noted_spawn(log: IO[bytes], folder: Path, port: int) -> subprocess.Popen[bytes]:
        started.append(port)
        return spawn(log, folder, port)

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


def test_a_second_start_on_the_same_data_is_refused(tmp_path: Path) -> None:
    with (
        start(tmp_path) as server,
        pytest.raises(EmbeddedRedisError, match=rf"in use by the Redis at {server.url}"),
        start(tmp_path),
    ):
        pass


def test_a_running_server_is_shared_and_left_running(tmp_path: Path) -> None:
    with start(tmp_path) as server:
        for start_if_missing in (True, False):
            with redis_url(None, data_dir=tmp_path, start_if_missing=start_if_missing) as url:
                assert url == server.url
        assert _runs(server.pid)


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with (
            pytest.raises(EmbeddedRedisError, match=rf"^port {port} on 127\.0\.0\.1 is taken: "),
            start(tmp_path, port=port),
        ):
            pass
    with start(tmp_path):
        """Start without an error: the failed start left no lock."""


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
