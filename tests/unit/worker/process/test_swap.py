"""worker.process.swap: one evaluator takes another's place, and no message is lost between them."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from schemas import MessageRejected
from tests.support.processes import DEADLINE, wait_for
from tests.support.stubs import Checkpoint, StubEvaluator, message
from worker.evaluator import EngineClosedError, EngineStatistics
from worker.process.swap import Swap

NEXT = Checkpoint("next", "5678" * 16)


class Started(threading.Thread):
    """Calls a function in a thread of its own, and keeps its error."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._function()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def ended(self) -> Exception | None:
        self.join(DEADLINE)
        assert not self.is_alive()
        return self.error


def change(swap: Swap, evaluator: StubEvaluator) -> None:
    with swap.trial(evaluator):
        swap.take_over().close()


def body(prompt: str = "solve") -> str:
    return message(prompt).model_dump_json()


def is_closed(evaluator: StubEvaluator) -> bool:
    return evaluator._closed.is_set()


def test_what_is_in_work_is_finished_by_the_old_one_and_what_comes_then_by_the_new_one(
    tmp_path: Path,
) -> None:
    old, new = StubEvaluator(), StubEvaluator(checkpoint=NEXT)
    swap = Swap(old)
    files = [tmp_path / name for name in ("first", "second")]
    pending = [swap.submit(body(f"hold {file}")) for file in files]
    digests: list[str] = []
    changing = Started(lambda: change(swap, new))
    wait_for(lambda: len(swap.engines) == 2, "both are watched")
    later = Started(lambda: digests.append(swap.submit(body()).result()[0].checkpoint_digest))
    files[0].touch()
    pending[0].result()
    assert not is_closed(old), "it still has one"
    assert (len(old.submitted), len(new.submitted), digests) == (2, 0, [])
    files[1].touch()
    assert changing.ended() is later.ended() is None
    assert digests == [NEXT.digest] == [swap.checkpoint.digest]
    assert {each.result()[0].checkpoint_digest for each in pending} == {old.checkpoint.digest}
    assert (is_closed(old), is_closed(new)) == (True, False)
    assert list(swap.engines) == [1]


def test_no_message_is_in_work_during_a_trial(tmp_path: Path) -> None:
    swap = Swap(StubEvaluator())
    pending = swap.submit(body(f"hold {tmp_path / 'go'}"))
    reached = threading.Event()

    def try_() -> None:
        with swap.trial(StubEvaluator(checkpoint=NEXT)):
            assert pending.future.done()  # type: ignore[attr-defined]
            reached.set()

    trying = Started(try_)
    wait_for(lambda: len(swap.engines) == 2, "the trial has begun")
    assert not reached.is_set()
    (tmp_path / "go").touch()
    assert trying.ended() is None
    assert reached.is_set()


def test_after_a_trial_that_fails_the_old_one_serves_on() -> None:
    old = StubEvaluator()
    swap = Swap(old)
    with pytest.raises(RuntimeError, match="wrong"), swap.trial(StubEvaluator(checkpoint=NEXT)):
        raise RuntimeError("wrong answers")
    assert swap.submit(body()).result()[0].checkpoint_digest == old.checkpoint.digest
    assert list(swap.engines) == [0]


def test_a_message_that_is_refused_holds_up_no_change() -> None:
    swap = Swap(StubEvaluator())
    with pytest.raises(MessageRejected):
        swap.submit("no json")
    change(swap, StubEvaluator(checkpoint=NEXT))
    assert swap.checkpoint == NEXT


def test_counts_never_fall_and_slots_are_those_of_the_one_that_serves() -> None:
    old, new = StubEvaluator(), StubEvaluator()
    old.statistics = EngineStatistics(
        slots=4, waiting=3, steps=10, answered=5, busy_seconds=2.5, slot_reductions=1, cache_hits=2
    )
    new.statistics = EngineStatistics(slots=8, busy_slots=1, steps=1, answered=1, refills=1)
    swap = Swap(old)
    assert swap.statistics == old.statistics
    change(swap, new)
    now = EngineStatistics(
        slots=8, busy_slots=1, steps=11, answered=6, busy_seconds=2.5, refills=1, cache_hits=2
    )
    assert swap.statistics == now
    change(swap, StubEvaluator())
    assert swap.statistics == replace(now, slots=4, busy_slots=0)


def test_at_the_end_all_are_closed_and_none_takes_a_place(tmp_path: Path) -> None:
    old, new, late = StubEvaluator(), StubEvaluator(), StubEvaluator()
    swap = Swap(old)
    pending = swap.submit(body(f"hold {tmp_path / 'never'}"))
    changing = Started(lambda: change(swap, new))
    wait_for(lambda: len(swap.engines) == 2, "the trial has begun")
    waiting = Started(lambda: swap.submit(body(f"hold {tmp_path / 'never'}")).result())
    swap.close()
    for error in (changing.ended(), waiting.ended()):
        assert isinstance(error, EngineClosedError)
    with pytest.raises(EngineClosedError):
        pending.result()
    with pytest.raises(EngineClosedError, match="shutting down"):
        change(swap, late)
    assert (is_closed(old), is_closed(new)) == (True, True)
    assert swap.serving is old


def test_under_load_from_threads_nothing_is_lost() -> None:
    evaluators = [StubEvaluator(checkpoint=Checkpoint("c", f"{n:064}")) for n in range(20)]
    swap = Swap(evaluators[0])
    stop = threading.Event()
    digests: list[str] = []

    def submit() -> None:
        while not stop.is_set():
            digests.append(swap.submit(body("take 0.0001 solve")).result()[0].checkpoint_digest)

    threads = [Started(submit) for _ in range(3)]
    for evaluator in evaluators[1:]:
        seen = len(digests)
        wait_for(lambda seen=seen: len(digests) > seen, "a message")  # type: ignore[misc]
        change(swap, evaluator)
    stop.set()
    assert [thread.ended() for thread in threads] == [None] * 3
    assert len(digests) == sum(len(each.submitted) for each in evaluators)
    assert all(map(is_closed, evaluators[:-1]))
    # One after the other: no verdict of one that has left comes after one of the next, but for
    # those that the threads had just been given.
    assert set(digests) == {each.checkpoint.digest for each in evaluators if each.submitted}
