"""worker.process.notify: systemd is told what happens, and nobody else."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import DEADLINE, wait_for
from worker.process.notify import Notifier


class Service:
    """The state that a service would report of itself."""

    def __init__(self) -> None:
        self.not_ready: str | None = "loading the\ncheckpoint"
        self.not_alive: str | None = None
        self.is_stopping = False

    def informed(self, notifier: Notifier) -> "threading.Event":
        """Keep systemd informed until the returned event is set."""
        started, ended = threading.Event(), threading.Event()

        def run() -> None:
            with notifier.informed(
                not_ready=lambda: self.not_ready,
                not_alive=lambda: self.not_alive,
                is_stopping=lambda: self.is_stopping,
            ):
                started.set()
                ended.wait(DEADLINE)

        threading.Thread(target=run).start()
        started.wait(DEADLINE)
        return ended


@pytest.fixture
def service() -> Service:
    return Service()


class Systemd:
    """The socket of systemd."""

    def __init__(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(name)
        self.socket.settimeout(DEADLINE)

    def hear(self) -> list[str]:
        """The lines of the next datagram."""
        return self.socket.recv(4096).decode().split("\n")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "notify")


@pytest.fixture
def systemd(path: str) -> Iterator[Systemd]:
    systemd = Systemd(path)
    with systemd.socket:
        yield systemd


def test_it_is_told_each_thing_once_and_the_end(
    systemd: Systemd, path: str, service: Service
) -> None:
    ended = service.informed(Notifier(path))
    assert systemd.hear() == ["STATUS=loading the checkpoint"]
    service.not_ready = None
    assert systemd.hear() == ["READY=1", "STATUS=ready"]
    service.not_ready = "cut off"
    assert systemd.hear() == ["STATUS=cut off"]
    service.not_ready = None
    assert systemd.hear() == ["STATUS=ready"], "READY=1 was said"
    service.is_stopping, service.not_ready = True, "shutting down"
    heard = systemd.hear()
    if "STOPPING=1" not in heard:  # the look was between the two
        heard += systemd.hear()
    assert set(heard) == {"STATUS=shutting down", "STOPPING=1"}
    ended.set()
    assert systemd.hear() == ["STOPPING=1"]


def test_signs_of_life_are_given_only_while_it_is_alive(
    systemd: Systemd, path: str, service: Service
) -> None:
    service.not_ready = None
    ended = service.informed(Notifier(path, watchdog_seconds=0.02))
    heard = systemd.hear()
    assert set(heard) == {"READY=1", "STATUS=ready", "WATCHDOG=1"}
    assert systemd.hear() == ["WATCHDOG=1"]
    service.not_alive = "the engine hangs"
    systemd.socket.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        for _ in range(1000):  # those that were on their way, and no more
            assert systemd.hear() == ["WATCHDOG=1"]
        pytest.fail("it still gives signs of life")
    ended.set()


def test_the_variables_are_read_and_not_left_to_processes_that_it_starts() -> None:
    environ = {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "30000000", "PATH": "/bin"}
    assert Notifier.from_env(environ) == Notifier("/run/n", 30.0)
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Notifier(None)),
        ({"WATCHDOG_USEC": "1000000"}, Notifier(None)),
        ({"NOTIFY_SOCKET": "relative"}, Notifier(None)),
        ({"NOTIFY_SOCKET": "@sd", "WATCHDOG_USEC": "soon"}, Notifier("@sd")),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, Notifier("/n")),
        (
            {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "9", "WATCHDOG_PID": str(os.getpid())},
            Notifier("/n", 9e-6),
        ),
    ],
)
def test_only_what_is_meant_for_this_process_is_used(
    environ: dict[str, str], expected: Notifier
) -> None:
    assert Notifier.from_env(environ) == expected


def test_a_name_with_an_at_sign_is_in_the_abstract_namespace() -> None:
    name = f"@sqe-hrm-test-{os.getpid()}"
    systemd = Systemd(name.replace("@", "\0"))
    with systemd.socket:
        Notifier(name).send("READY=1")
        assert systemd.hear() == ["READY=1"]


def test_without_systemd_nothing_is_sent_and_nothing_fails(service: Service, path: str) -> None:
    before = threading.active_count()
    with Notifier(None).informed(
        not_ready=lambda: None, not_alive=lambda: None, is_stopping=lambda: False
    ):
        assert threading.active_count() == before
    Notifier(path).send("READY=1")
    ended = service.informed(Notifier(path))
    ended.set()
    wait_for(lambda: threading.active_count() == before, "the thread's end")
