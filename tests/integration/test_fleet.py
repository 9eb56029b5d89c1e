"""Several workers from one command: real processes, of which some end when they should not."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.processes import DEADLINE, ROOT, STUB, Worker, wait_for, workers_of
from tests.support.stubs import message
from worker.broker.keys import UNACKED
from worker.client import Client

STUBS = """
import sys
from worker.fleet import run
run.COMMAND = (sys.executable, "-m", "tests.support.stub_worker")
from worker.cli.main import main
main()
"""
"""The command, with workers that have a stub evaluator."""

NOWHERE = "redis://127.0.0.1:1/0"

ENDS_EARLY = """
from worker.fleet import restarts, run
restarts.FIRST_SECONDS = 0.01
run.COMMAND = ("/bin/sh", "-c", "echo the device fell off the bus >&2; exit 75", "sh")
from worker.cli.main import main
main()
"""
"""The command, with workers that say one line and end."""


ONE_BROKEN = """
import sys
from worker.fleet import run
fails = "case $* in *cuda:3*) echo cuda:3 solves 0 of 8 known pairs >&2; exit 1;; esac"
run.COMMAND = ("/bin/sh", "-c", f'{fails}; exec "$0" -m tests.support.stub_worker "$@"')
run.COMMAND += (sys.executable,)
from worker.cli.main import main
main()
"""
"""The command, with workers that have a stub evaluator, of which one fails its self-test."""


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket to which services say how they are."""
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(address)
        heard.settimeout(DEADLINE)
        yield heard


def wait_until_told(systemd: socket.socket, line: bytes) -> None:
    while line not in systemd.recv(4096).split(b"\n"):
        pass


def test_a_killed_worker_is_started_again_and_nothing_is_lost(
    tmp_path: Path,
    redis_url: str,
    store: redis.Redis,
    client: Client,
    systemd: socket.socket,
) -> None:
    command = (sys.executable, "-c", STUBS, "worker", "--devices", "cpux2")
    gate = tmp_path / "gate"
    with Worker.start(command, tmp_path, redis_url, visibility_timeout=1) as fleet:
        wait_until_told(systemd, b"READY=1")
        assert fleet.get("/readyz") == (200, "ready\ncpu/0: ready\ncpu/1: ready\n")
        fleet.signal(signal.SIGHUP)
        wait_for(lambda: fleet.total("reloads_total") == 2, "both looked for another checkpoint")
        sent = [client.submit(message(f"hold {gate}")) for _ in range(40)]
        wait_for(lambda: store.hlen(UNACKED) > 8, "both have some in hand")
        before = workers_of(fleet)
        victim = min(before)
        assert b"NOTIFY_SOCKET" not in Path(f"/proc/{victim}/environ").read_bytes()
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: fleet.total("worker_up") == 1, "one is missing")
        assert fleet.is_ready()
        gate.touch()
        assert {each.message_id for each in client.results(sent)} == set(sent)
        wait_for(lambda: fleet.total("worker_up") == 2, "both are there")
        assert len(workers_of(fleet) - before) == 1
        more = [client.submit(message()) for _ in range(40)]
        assert {each.message_id for each in client.results(more)} == set(more)
        assert fleet.total("worker_restarts_total") == 1
        for number in "01":
            assert f"duplicates_total{{device=cpu}}{{process={number}}}" in fleet.metrics()
        wait_for(lambda: not store.exists(UNACKED), "all acknowledged")
        fleet.signal(signal.SIGTERM)
        assert fleet.wait() == 0
    assert "was killed by signal 9" in fleet.log.read_text()


def test_a_worker_whose_device_is_broken_does_not_stop_the_others(
    tmp_path: Path, redis_url: str, client: Client, systemd: socket.socket
) -> None:
    command = (sys.executable, "-c", ONE_BROKEN, "worker", "--devices", "cpu,cuda:3")
    with Worker.start(command, tmp_path, redis_url) as fleet:
        wait_until_told(systemd, b"READY=1")
        reason = "given up: cannot start: cuda:3 solves 0 of 8 known pairs"
        wait_for(lambda: reason in fleet.get("/readyz")[1], "given up")
        assert fleet.get("/readyz") == (200, f"ready\ncpu: ready\ncuda:3: {reason}\n")
        assert fleet.metrics()["worker_up{device=cuda:3}"] == 0
        assert client.result(client.submit(message())).solved
        fleet.signal(signal.SIGTERM)
        assert fleet.wait() == 1, "not all is well"
    assert f"cuda:3: {reason}" in fleet.log.read_text()


def test_a_single_worker_tells_systemd_when_it_takes_messages_and_when_it_stops(
    tmp_path: Path, redis_url: str, systemd: socket.socket
) -> None:
    with Worker.start(STUB, tmp_path, redis_url) as worker:
        wait_until_told(systemd, b"READY=1")
        assert worker.is_ready()
        worker.signal(signal.SIGTERM)
        wait_until_told(systemd, b"STOPPING=1")
        assert worker.wait() == 0


def run(program: str, devices: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, "worker", "--devices", devices, "--metrics-port", "0"],
        cwd=folder,
        env={**os.environ, "SQE_REDIS_URL": NOWHERE, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def test_workers_that_end_early_again_and_again_are_given_up_with_the_reason(
    tmp_path: Path,
) -> None:
    done = run(ENDS_EARLY, "cpux2", tmp_path)
    assert done.returncode == 75
    for name in ("cpu/0", "cpu/1"):
        assert done.stderr.count(f"[{name}] the device fell off the bus") == 5
    last = done.stderr.splitlines()[-1]
    assert last.startswith("sqe-hrm: error: no worker is left: cpu/0: given up: 5 ends")
    assert last.endswith("it last ended with status 75, last said: the device fell off the bus")


def test_what_every_start_would_meet_ends_the_fleet_after_one_start_of_each(tmp_path: Path) -> None:
    done = run(STUBS, "cpux2", tmp_path, SQE_NAMESPACE="{")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    said = [line.partition("] sqe-hrm: error: ")[2] for line in lines if line.startswith("[")]
    first, second = filter(None, said)
    assert first == second
    assert first.startswith("SQE_NAMESPACE ")
    reason = f"no worker is left: cpu/0: given up: cannot start: {first}"
    assert lines[-1] == f"sqe-hrm: error: {reason}"
