"""worker.fleet.child: a real process, its output, its pages and its end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes import wait_for
from worker.fleet import child as fleet_child
from worker.fleet.child import Child
from worker.fleet.members import Member

MEMBER = Member("cpu", 1)

SERVES = """
import signal, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

class Pages(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if ready.locked() else 200)
        self.end_headers()
        self.wfile.write(b"loading the checkpoint\\n" if ready.locked() else b"ready\\n")
    def log_message(self, *_):
        pass

ready = threading.Lock()
ready.acquire()
signal.signal(signal.SIGHUP, lambda *_: ready.release())
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server = HTTPServer(("127.0.0.1", 0), Pages)
print(f"12:00 INFO serving http://127.0.0.1:{server.server_port}/metrics, /healthz", flush=True)
server.serve_forever()
"""
"""Serves a page that says that it is ready from SIGHUP on, until SIGTERM."""


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_child, "LOOK_SECONDS", 0.02)


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    """Start a child that runs a command; ended with the test."""
    children = []

    def run(*command: str) -> Child:
        children.append(Child(MEMBER, command, os.environ))
        return children[-1]

    yield run
    for child in children:
        child.kill()
        wait_for(lambda child=child: child.poll() is not None, "killed")  # type: ignore[misc]


def python(source: str) -> tuple[str, ...]:
    return (sys.executable, "-c", source)


def wait_for_end(child: Child) -> int:
    wait_for(lambda: child.poll() is not None, "the end")
    status = child.poll()
    assert status is not None
    return status


def test_it_is_ready_once_its_page_says_so_and_ends_when_told(
    start: Callable[..., Child],
) -> None:
    child = start(*python(SERVES))
    assert (child.url, child.ready_since, child.not_ready_reason) == (None, None, "starting")
    wait_for(lambda: child.not_ready_reason == "loading the checkpoint", "a first look")
    child.send_signal(signal.SIGHUP)
    wait_for(lambda: child.not_ready_reason is None, "ready")
    assert child.ready_since is not None
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    assert wait_for_end(child) == 0


def test_one_that_does_not_answer_is_silent_until_it_answers_again(
    start: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_child, "ANSWER_SECONDS", 0.1)
    child = start(*python(SERVES))
    wait_for(lambda: child.not_ready_reason == "loading the checkpoint", "an answer")
    child.send_signal(signal.SIGSTOP)
    wait_for(lambda: child.silent_seconds > 0.3, "silence")
    assert child.not_ready_reason == "does not answer"
    child.send_signal(signal.SIGCONT)
    wait_for(lambda: child.silent_seconds == 0, "an answer again")


def test_its_lines_are_passed_on_with_its_name_and_the_last_one_is_kept(
    start: Callable[..., Child], capsys: pytest.CaptureFixture[str]
) -> None:
    child = start("sh", "-c", "echo one; echo sqe-hrm: error: no such file >&2; echo; exit 3")
    assert wait_for_end(child) == 3
    assert child.last_line == "no such file"
    printed = capsys.readouterr().err
    assert printed == "[cpu/1] one\n[cpu/1] sqe-hrm: error: no such file\n[cpu/1] \n"


def test_the_status_of_one_that_was_killed_is_the_shells(start: Callable[..., Child]) -> None:
    assert wait_for_end(start("sh", "-c", "kill -9 $$")) == 128 + 9


def test_killing_it_ends_what_it_has_started(start: Callable[..., Child], tmp_path: Path) -> None:
    file = tmp_path / "pid"
    child = start("sh", "-c", f"sleep 600 & echo $! > {file}; wait")
    wait_for(lambda: file.exists() and file.read_text().endswith("\n"), "a grandchild")
    child.kill()
    wait_for_end(child)
    gone = Path(f"/proc/{int(file.read_text())}/status")
    wait_for(lambda: not gone.exists() or "State:\tZ" in gone.read_text(), "the grandchild's end")


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    owner = f"""
import os, sys, time
from worker.fleet.child import Child
from worker.fleet.members import Member
child = Child(Member("cpu"), ["sh", "-c", "echo $$ > {file}; exec sleep 600"], os.environ)
while not os.path.exists({str(file)!r}) or not open({str(file)!r}).read():
    time.sleep(0.01)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", owner], check=False).returncode == -signal.SIGKILL
    left = Path(f"/proc/{int(file.read_text())}/status")
    wait_for(lambda: not left.exists() or "State:\tZ" in left.read_text(), "the child's end")
