"""worker.delivery.storing: what is ready goes together, and what is refused holds up nothing."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from tests.support.pipelines import FakeClient
from tests.support.processes import wait_for
from worker.delivery import storing as module
from worker.delivery.storing import MOST_GATHERED, MOST_STEPS, Step, Storable, Storing


class Line:
    """Storing threads, and what became of their steps."""

    def __init__(self, before: Callable[[], object] = lambda: None, replicas: int = 0) -> None:
        self.client = FakeClient(before)
        client: Any = self.client
        self.errors: list[None] = []
        self.storing = Storing(
            client, self.store, replicas=replicas, on_error=lambda: self.errors.append(None)
        )
        self.accepted: list[Any] = []
        self.aborted: list[Any] = []
        self.failed: list[Exception] = []
        self.attempts: list[tuple[str, str, list[Any]]] = []
        self.has_started = False

    def start(self) -> None:
        self.has_started = True
        self.storing.start()

    def store(self, pipe: Any, entries: Any, token: str, name: str) -> None:  # noqa: ANN401
        self.attempts.append((token, name, list(entries)))
        pipe.add(lambda: [entry() for entry in entries])

    def answer(self, name: object, command: Callable[[], Any] | None = None) -> None:
        """Have an answer stored; its command returns the reply to it."""
        entry: Any = command or (lambda: 1)
        self.storing.put(
            lambda: Storable(
                entry,
                lambda counted: self.accepted.append((name, bool(counted))),
                lambda: self.aborted.append(name),
                self.failed.append,
            )
        )

    def step(self, name: object, command: Callable[[], Any] | None = None) -> Step:
        return Step(
            lambda pipe: pipe.add(command or (lambda: name)),  # type: ignore[attr-defined]
            self.accepted.extend,
            lambda: self.aborted.append(name),
            self.failed.append,
        )

    def put(
        self, name: object, command: Callable[[], Any] | None = None, *, gather: bool = False
    ) -> None:
        self.storing.put(lambda: self.step(name, command), gather=gather)

    def wait(self, *names: object) -> None:
        wait_for(lambda: sorted(map(str, self.accepted)) == sorted(map(str, names)), "accepted")


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    if line.has_started:
        line.storing.give_up()
        line.storing.stop()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


def test_a_lone_step_is_sent_at_once_and_those_that_come_meanwhile_together(
    line: Line, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GATHER_SECONDS", 3600.0)
    line.client.before = gate.wait
    line.start()
    for number in range(module.THREADS):
        line.put(number)
        wait_for(lambda: not line.storing._urgent, "under way")
    for number in range(module.THREADS, 50):
        line.put(number)
    gate.set()
    line.wait(*range(50))
    assert line.client.sizes.count(1) >= 1
    assert len(line.client.sizes) <= 2 * module.THREADS


def test_what_gathers_waits_for_its_time_or_for_a_flush(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GATHER_SECONDS", 3600.0)
    line.start()
    for number in range(5):
        line.put(number, gather=True)
    line.put("urgent")
    line.wait("urgent")
    line.storing.flush()
    line.wait(*range(5), "urgent")
    assert line.client.sizes == [1, 5]
    monkeypatch.setattr(module, "GATHER_SECONDS", 0.01)
    line.put("soon", gather=True)
    line.wait(*range(5), "urgent", "soon")


def test_a_full_pipeline_gathers_no_longer(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER_SECONDS", 3600.0)
    line.start()
    for number in range(module.MOST_STEPS - 1):
        line.put(number, gather=True)
    line.put("urgent")
    line.wait("urgent")
    line.put("last", gather=True)
    line.wait(*range(module.MOST_STEPS - 1), "urgent", "last")


def test_what_has_gathered_goes_in_small_parts_beside_urgent_steps(line: Line) -> None:
    for number in range(2 * MOST_GATHERED):
        line.put(number, gather=True)
    line.storing.flush()
    line.put("urgent")
    steps = line.storing._next()
    assert steps is not None
    assert len(steps) == 1 + MOST_GATHERED
    steps = line.storing._next()
    assert steps is not None
    assert len(steps) == MOST_GATHERED


def test_an_urgent_step_does_not_wait_until_all_that_gathered_is_built(line: Line) -> None:
    def build(number: int) -> Step:
        if number == 3:
            line.put("urgent")
        return line.step(number)

    for number in range(10):
        line.storing.put(lambda number=number: build(number), gather=True)  # type: ignore[misc]
    line.storing.flush()
    steps = line.storing._next()
    assert steps is not None
    assert len(steps) == 4
    line.start()
    for step in steps:
        line.storing.put(lambda step=step: step)  # type: ignore[misc]
    line.wait(*range(10), "urgent")
    assert line.accepted[4:] == [4, 5, 6, 7, 8, 9] or "urgent" in line.accepted


def test_a_pipeline_has_a_limit(line: Line) -> None:
    for number in range(MOST_STEPS + 1):
        line.put(number)
    line.start()
    line.wait(*range(MOST_STEPS + 1))
    assert max(line.client.sizes) == MOST_STEPS


def test_nothing_to_send_is_no_pipeline(line: Line) -> None:
    line.storing.put(lambda: None)
    line.start()
    line.put("a")
    line.wait("a")
    assert sum(line.client.sizes) == 1


def test_a_step_that_redis_refuses_is_sent_again_and_holds_up_no_other(line: Line) -> None:
    answers = iter([redis.ResponseError("WRONGTYPE no stream")] * 2)

    def sometimes() -> str:
        error = next(answers, None)
        if error is not None:
            raise error
        return "at last"

    line.put("refused", sometimes)
    line.put("other")
    line.start()
    line.wait("other")
    assert "WRONGTYPE" in str(line.storing.trouble.reason())
    line.wait("other", "at last")
    assert line.storing.trouble.reason() is None
    assert len(line.errors) == 2


def test_a_lost_connection_sends_everything_again() -> None:
    lost = iter([redis.ConnectionError("lost")] * 3)

    def before() -> None:
        error = next(lost, None)
        if error is not None:
            raise error

    line = Line(before)
    for number in range(9):
        line.put(number)
    line.start()
    line.wait(*range(9))
    assert len(line.errors) == 3
    line.storing.stop()


def test_a_redis_that_knows_no_script_is_told_once(line: Line) -> None:
    def unknown() -> str:
        if not line.client.loaded:
            raise redis.exceptions.NoScriptError
        return "known"

    line.put("a", unknown)
    line.start()
    line.wait("known")
    assert line.errors == []


def test_what_too_few_replicas_have_is_sent_again() -> None:
    line = Line(replicas=1)
    line.put("a")
    line.start()
    wait_for(lambda: bool(line.errors), "not confirmed")
    assert line.accepted == []
    line.client.replicas = 1
    line.wait("a")
    line.storing.stop()


def test_after_giving_up_what_redis_accepts_is_stored_and_the_rest_aborted(line: Line) -> None:
    def refuse() -> None:
        raise redis.ResponseError("no")

    line.put("a", refuse)
    line.put("b")
    line.start()
    line.wait("b")
    line.storing.give_up()
    wait_for(lambda: line.aborted == ["a"], "aborted")
    line.put("c", refuse)
    line.put("d")
    wait_for(lambda: line.aborted == ["a", "c"], "aborted at once")
    line.wait("b", "d")
    line.storing.stop()


def test_the_threads_end_after_everything_was_sent(line: Line) -> None:
    line.put("a", gather=True)
    line.start()
    line.storing.stop()
    assert line.accepted == ["a"]


def test_an_unexpected_error_ends_neither_the_thread_nor_other_steps(line: Line) -> None:
    def bug(_: object) -> None:
        raise KeyError("bug")

    line.storing.put(lambda: Step(bug, bug, bug, line.failed.append))  # type: ignore[arg-type]
    line.storing.put(
        lambda: Step(lambda pipe: pipe.add(lambda: 1), bug, bug, line.failed.append)  # type: ignore[attr-defined, arg-type]
    )
    line.put("other")
    line.start()
    line.wait("other")
    assert [type(error) for error in line.failed] == [KeyError, KeyError]


def test_the_answers_of_a_pipeline_are_one_attempt(line: Line) -> None:
    for number in range(5):
        line.answer(number, lambda number=number: number % 2)  # type: ignore[misc]
    line.put("step")
    line.start()
    line.wait(*((number, bool(number % 2)) for number in range(5)), "step")
    assert [len(entries) for _, _, entries in line.attempts] == [5]
    assert line.client.sizes == [2]


def test_an_answer_that_redis_refuses_is_sent_again_and_the_others_are_not(line: Line) -> None:
    replies = iter([b"WRONGTYPE no stream", 1])
    line.answer("refused", lambda: next(replies))
    line.answer("other")
    line.start()
    line.wait(("other", True))
    assert "WRONGTYPE" in str(line.storing.trouble.reason())
    line.wait(("other", True), ("refused", True))
    assert line.storing.trouble.reason() is None
    assert [len(entries) for _, _, entries in line.attempts] == [2, 1]
    assert line.attempts[0][0] != line.attempts[1][0], "a new attempt"
    assert line.attempts[0][1] == line.attempts[1][1], "names are used again"


def test_after_a_lost_reply_the_same_attempt_is_made_again_under_its_own_name() -> None:
    lost = iter([redis.ConnectionError("lost")])

    def before() -> None:
        error = next(lost, None)
        if error is not None:
            raise error

    line = Line(before)
    line.answer("a")
    line.answer("b")
    line.start()
    wait_for(lambda: bool(line.errors), "lost")
    line.answer("c")
    line.wait(("a", True), ("b", True), ("c", True))
    of_both = [attempt for attempt in line.attempts if len(attempt[2]) == 2]
    (of_one,) = [attempt for attempt in line.attempts if len(attempt[2]) == 1]
    assert of_both[0] == of_both[1]
    assert of_one[1] != of_both[0][1]
    line.storing.stop()


def test_a_bug_in_storing_an_answer_is_told_from_its_neighbours(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = line.store

    def sometimes(pipe: Any, entries: Any, *rest: Any) -> None:  # noqa: ANN401
        if None in entries:
            raise KeyError("bug")
        store(pipe, entries, *rest)

    monkeypatch.setattr(line.storing, "_store", sometimes)
    line.answer("a")
    broken: Any = None
    line.storing.put(
        lambda: Storable(broken, line.accepted.append, lambda: None, line.failed.append)
    )
    line.answer("b")
    line.start()
    line.wait(("a", True), ("b", True))
    assert [type(error) for error in line.failed] == [KeyError]


def test_after_giving_up_a_refused_answer_is_aborted(line: Line) -> None:
    line.answer("refused", lambda: b"WRONGTYPE")
    line.answer("other")
    line.storing.give_up()
    line.start()
    wait_for(lambda: line.aborted == ["refused"], "aborted")
    line.wait(("other", True))
