"""worker.fleet.supervisor: what it does when workers start, end, hang and are told to stop."""

import logging
import signal
from dataclasses import dataclass, field

import pytest

from worker.fleet.members import Member, read_members
from worker.fleet.restarts import EARLY_SECONDS
from worker.fleet.supervisor import END_SECONDS, HUNG_SECONDS, TERMINATED, End, Supervisor

GRACE, STALL = 25.0, 120.0


@dataclass
class FakeChild:
    """A worker that does what the test says."""

    member: Member
    url: str | None = None
    ready_since: float | None = None
    silent_seconds: float = 0.0
    not_ready_reason: str | None = "starting"
    last_line: str = "hello"
    status: int | None = None
    signals: list[signal.Signals] = field(default_factory=list)
    was_killed: bool = False

    def poll(self) -> int | None:
        return self.status

    def send_signal(self, number: signal.Signals) -> None:
        self.signals.append(number)

    def kill(self) -> None:
        self.was_killed = True
        self.status = 128 + signal.SIGKILL


class World:
    """A supervisor, its workers, and a clock that the test moves."""

    def __init__(self, devices: str) -> None:
        self.now = 1000.0
        self.started: list[FakeChild] = []
        self.supervisor = Supervisor(
            read_members(devices),
            self.start,
            grace_seconds=GRACE,
            stall_seconds=STALL,
            clock=lambda: self.now,
        )
        self.step()

    def start(self, member: Member) -> FakeChild:
        self.started.append(FakeChild(member))
        return self.started[-1]

    def child(self, name: str) -> FakeChild:
        """The latest worker of this name."""
        return next(each for each in reversed(self.started) if each.member.name == name)

    def step(self, seconds: float = 0.0) -> End | None:
        self.now += seconds
        return self.supervisor.step()

    def ready(self, *names: str) -> None:
        for name in names:
            child = self.child(name)
            child.ready_since, child.not_ready_reason = self.now, None

    def signal(self, number: signal.Signals) -> End | None:
        self.supervisor.on_signal(number, None)
        return self.step()

    def reasons(self) -> list[str | None]:
        return [state.not_ready_reason for state in self.supervisor.states()]


def test_each_member_gets_a_worker_at_once() -> None:
    world = World("cpux2,cuda:1")
    assert [child.member.name for child in world.started] == ["cpu/0", "cpu/1", "cuda:1"]
    assert world.step() is None
    assert len(world.started) == 3


def test_a_worker_that_ends_is_started_again_after_a_pause() -> None:
    world = World("cpux2")
    world.ready("cpu/0", "cpu/1")
    world.child("cpu/1").status = 75
    world.step(EARLY_SECONDS)
    assert world.reasons() == [None, "ended with status 75, last said: hello"]
    world.step(0.9)
    assert len(world.started) == 2
    world.step(0.1)
    assert world.child("cpu/1").status is None
    assert [state.restarts for state in world.supervisor.states()] == [0, 1]


def test_a_worker_that_ends_early_again_and_again_is_given_up_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World("cuda:0,cuda:1")
    world.ready("cuda:0")
    for pause in (1, 2, 4, 8):
        child = world.child("cuda:1")
        child.status, child.last_line = 128 + signal.SIGSEGV, "no such kernel"
        world.step()
        world.step(pause - 0.1)
        assert world.child("cuda:1") is child
        world.step(0.1)
        assert world.child("cuda:1") is not child
    world.child("cuda:1").status = 75
    assert world.step() is None
    assert world.step(1000) is None
    assert len(world.started) == 6
    given_up = (
        "given up: 5 ends in a row before it was ready for 60 s; "
        "it last ended with status 75, last said: hello"
    )
    assert world.reasons() == [None, given_up]
    assert f"cuda:1: {given_up}" in caplog.text
    assert "was killed by signal 11, last said: no such kernel" in caplog.text
    assert world.supervisor.not_ready_reason() is None
    assert world.supervisor.not_complete_reason() is None
    world.signal(signal.SIGTERM)
    world.child("cuda:0").status = 0
    assert world.step() == End(75), "not all is well"


def test_a_fleet_of_which_no_worker_is_left_ends_with_the_reason() -> None:
    world = World("cpux2")
    end = None
    for _ in range(20):
        for name in ("cpu/0", "cpu/1"):
            world.child(name).status = 75 if name == "cpu/0" else 134
        end = world.step(10)
        if end is not None:
            break
    assert end is not None
    assert end.status == 134
    assert end.reason is not None
    assert end.reason.startswith("no worker is left: cpu/0: given up: 5 ends in a row")


def test_a_process_that_the_system_refuses_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: World, member: Member) -> FakeChild:
        raise BlockingIOError(11, "Resource temporarily unavailable", str(member))

    with monkeypatch.context() as full:
        full.setattr(World, "start", refuse)
        world = World("cpu")
    assert world.reasons() == ["could not be started: Resource temporarily unavailable"]
    world.supervisor._start = world.start
    assert world.step(1) is None
    assert [child.member.name for child in world.started] == ["cpu"]


@pytest.mark.parametrize("status", [1, 2])
def test_a_worker_that_cannot_start_is_given_up_at_once_and_the_others_go_on(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    world = World("cuda:0,cuda:1,cuda:2")
    world.ready("cuda:1")
    broken = world.child("cuda:2")
    broken.status, broken.last_line = status, "cuda:2 solves 0 of 8 known pairs"
    assert world.step() is None
    assert world.step(1000) is None
    assert len(world.started) == 3
    assert [child.signals for child in world.started] == [[], [], []]
    reason = "given up: cannot start: cuda:2 solves 0 of 8 known pairs"
    assert f"cuda:2: {reason}" in caplog.text
    assert world.reasons() == ["starting", None, reason]
    assert world.supervisor.not_complete_reason() == "1 of 3 workers are ready"
    world.ready("cuda:0")
    assert world.supervisor.not_complete_reason() is None
    world.signal(signal.SIGTERM)
    world.child("cuda:0").status = world.child("cuda:1").status = 0
    assert world.step() == End(status), "not all is well"


def test_a_fleet_of_which_no_worker_can_start_ends_with_the_reason() -> None:
    world = World("cpux2")
    for name in ("cpu/1", "cpu/0"):
        child = world.child(name)
        assert world.step() is None
        child.status, child.last_line = 1, "no checkpoint 'x'"
    reason = "no worker is left: cpu/0: given up: cannot start: no checkpoint 'x'"
    assert world.step() == End(1, reason)
    assert len(world.started) == 2


def test_a_worker_that_was_ready_once_is_started_again_even_if_it_then_cannot_start() -> None:
    world = World("cpux2")
    world.ready("cpu/0", "cpu/1")
    world.child("cpu/0").status = 75
    world.step(EARLY_SECONDS)
    world.step(1)
    world.child("cpu/0").status = 1
    assert world.step() is None
    world.step(1)
    assert world.child("cpu/0").status is None
    assert world.child("cpu/1").signals == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_tells_the_workers_once_and_ends_with_them(
    number: signal.Signals,
) -> None:
    world = World("cpux2")
    world.ready("cpu/0", "cpu/1")
    assert world.signal(number) is None
    assert world.signal(signal.SIGINT) is None, "a second signal changes nothing"
    assert [child.signals for child in world.started] == [[signal.SIGTERM]] * 2
    assert world.supervisor.is_stopping
    assert world.supervisor.not_ready_reason() == "shutting down"
    world.child("cpu/0").status = 0
    assert world.step() is None
    world.child("cpu/1").status = 0
    assert world.step() == End(0)
    assert len(world.started) == 2


def test_a_worker_that_was_still_starting_had_nothing_to_finish() -> None:
    world = World("cpu")
    world.signal(signal.SIGTERM)
    world.child("cpu").status = TERMINATED
    assert world.step() == End(0)


def test_the_exit_status_is_the_worst_workers() -> None:
    world = World("cpux3")
    world.ready("cpu/0", "cpu/1", "cpu/2")
    world.signal(signal.SIGTERM)
    for name, status in (("cpu/0", 0), ("cpu/1", TERMINATED), ("cpu/2", 75)):
        world.child(name).status = status
    assert world.step() == End(TERMINATED)


def test_a_worker_that_does_not_end_is_killed_after_the_grace_period() -> None:
    world = World("cpux2")
    world.ready("cpu/0", "cpu/1")
    world.signal(signal.SIGTERM)
    world.child("cpu/0").status = 0
    world.step(GRACE + END_SECONDS - 0.1)
    assert not world.child("cpu/1").was_killed
    world.step(0.1)
    assert world.child("cpu/1").was_killed
    assert world.step() == End(128 + signal.SIGKILL)


def test_a_worker_that_does_not_answer_is_killed_and_started_again() -> None:
    world = World("cpu")
    world.ready("cpu")
    hung = world.child("cpu")
    hung.silent_seconds = STALL - 0.1
    world.step(EARLY_SECONDS)
    assert not hung.was_killed
    hung.silent_seconds = STALL
    world.step()
    assert hung.was_killed
    world.step()
    world.step(1)
    assert world.child("cpu") is not hung


def test_sighup_is_passed_on_once_to_each_worker_that_is_or_gets_ready() -> None:
    world = World("cpux3")
    world.ready("cpu/0", "cpu/1")
    world.child("cpu/1").status = 75
    world.signal(signal.SIGHUP)
    assert world.child("cpu/0").signals == [signal.SIGHUP]
    assert world.child("cpu/2").signals == [], "it would be fatal while it starts"
    world.ready("cpu/2")
    world.step(1)
    world.step()
    assert world.child("cpu/2").signals == [signal.SIGHUP]
    world.ready("cpu/1")
    world.step()
    assert world.child("cpu/1").signals == [], "it started after the signal"
    assert world.child("cpu/0").signals == [signal.SIGHUP]


def test_it_is_ready_with_one_worker_and_complete_with_all() -> None:
    world = World("cpux2")
    supervisor = world.supervisor
    assert supervisor.not_ready_reason() == "no worker is ready"
    assert supervisor.not_complete_reason() == "no worker is ready"
    world.ready("cpu/1")
    assert supervisor.not_ready_reason() is None
    assert supervisor.not_complete_reason() == "1 of 2 workers are ready"
    world.ready("cpu/0")
    assert supervisor.not_complete_reason() is None


def test_a_supervisor_that_stops_looking_is_not_alive() -> None:
    world = World("cpu")
    world.now += HUNG_SECONDS - 1
    assert world.supervisor.not_alive_reason() is None
    world.now += 1
    assert world.supervisor.not_alive_reason() == "the supervisor hangs for 30 s"


def test_an_end_that_was_wanted_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    world = World("cpu")
    world.ready("cpu")
    world.signal(signal.SIGTERM)
    world.child("cpu").status = 0
    assert world.step() == End(0)
    assert not caplog.records
