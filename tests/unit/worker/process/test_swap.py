"""worker.process.swap: one evaluator takes another's place, and no message is lost between them."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from schemas import MessageRejected
from tests.support.processes import DEADLINE, wait_for
from tests.support.stubs import Checkpoint, StubEvaluator, message
from worker.evaluator import EngineClosedError, EngineStatistics
from worker.process.swap import Swap

NEXT = Checkpoint("next", "5678" * 16)


class Finishing(threading.Thread):
    """Finishes a change of evaluators in a thread of its own."""

    def __init__(self, swap: Swap) -> None:
        super().__init__(target=swap.finish, daemon=True)
        self.start()


def body(prompt: str = "solve") -> str:
    return message(prompt).model_dump_json()


def is_closed(evaluator: StubEvaluator) -> bool:
    return evaluator._closed.is_set()


def test_each_message_is_answered_by_the_evaluator_that_took_it(tmp_path: Path) -> None:
    old, new = StubEvaluator(), StubEvaluator(checkpoint=NEXT)
    swap = Swap(old)
    file = tmp_path / "go"
    before = swap.submit(body(f"hold {file}"))
    swap.replace(new)
    after = swap.submit(body())
    assert swap.checkpoint == NEXT
    file.touch()
    digests = [each.result()[0].checkpoint_digest for each in (before, after)]
    assert digests == [old.checkpoint.digest, NEXT.digest]
    assert (len(old.submitted), len(new.submitted)) == (1, 1)


def test_the_old_one_is_closed_once_it_has_answered_everything(tmp_path: Path) -> None:
    old, new = StubEvaluator(), StubEvaluator(checkpoint=NEXT)
    swap = Swap(old)
    files = [tmp_path / name for name in ("first", "second")]
    pending = [swap.submit(body(f"hold {file}")) for file in files]
    swap.replace(new)
    finishing = Finishing(swap)
    files[0].touch()
    pending[0].result()
    assert not is_closed(old), "it still has one"
    assert len(swap.engines) == 2
    files[1].touch()
    finishing.join(DEADLINE)
    assert is_closed(old)
    assert not is_closed(new)
    assert list(swap.engines) == [1]
    assert pending[1].result()[0].checkpoint_digest == old.checkpoint.digest


def test_a_message_that_is_refused_holds_up_no_change() -> None:
    swap = Swap(StubEvaluator())
    with pytest.raises(MessageRejected):
        swap.submit("no json")
    swap.replace(StubEvaluator())
    swap.finish()
    assert swap.finish() is None, "nothing is left to finish"


def test_counts_never_fall_and_slots_are_those_of_the_one_that_serves() -> None:
    old, new = StubEvaluator(), StubEvaluator()
    old.statistics = EngineStatistics(
        slots=4, busy_slots=2, waiting=3, steps=10, answered=5, slot_reductions=1, cache_hits=2
    )
    new.statistics = EngineStatistics(slots=8, busy_slots=1, steps=1, answered=1, refills=1)
    swap = Swap(old)
    assert swap.statistics == old.statistics
    swap.replace(new)
    assert swap.statistics == EngineStatistics(
        slots=8, busy_slots=3, waiting=3, steps=11, answered=6, refills=1, cache_hits=2
    )
    old.statistics = replace(old.statistics, busy_slots=0, waiting=0, steps=20, answered=9)
    swap.finish()
    swap.replace(StubEvaluator())
    swap.finish()
    assert swap.statistics == EngineStatistics(
        slots=4, steps=21, answered=10, refills=1, cache_hits=2
    )


def test_at_the_end_all_are_closed_and_none_takes_a_place(tmp_path: Path) -> None:
    old, new, late = StubEvaluator(), StubEvaluator(), StubEvaluator()
    swap = Swap(old)
    pending = swap.submit(body(f"hold {tmp_path / 'never'}"))
    swap.replace(new)
    finishing = Finishing(swap)
    swap.close()
    finishing.join(DEADLINE)
    assert not finishing.is_alive()
    with pytest.raises(EngineClosedError):
        pending.result()
    with pytest.raises(EngineClosedError, match="shutting down"):
        swap.replace(late)
    assert [is_closed(each) for each in (old, new, late)] == [True] * 3


def test_under_load_from_threads_nothing_is_lost() -> None:
    evaluators = [StubEvaluator(checkpoint=Checkpoint("c", f"{n:064}")) for n in range(20)]
    swap = Swap(evaluators[0])
    stop = threading.Event()
    digests: list[str] = []

    def submit() -> None:
        while not stop.is_set():
            digests.append(swap.submit(body("take 0.0001 solve")).result()[0].checkpoint_digest)

    threads = [threading.Thread(target=submit) for _ in range(3)]
    for thread in threads:
        thread.start()
    for evaluator in evaluators[1:]:
        seen = len(digests)
        wait_for(lambda seen=seen: len(digests) > seen, "a message")  # type: ignore[misc]
        swap.replace(evaluator)
        swap.finish()
    stop.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert len(digests) == sum(len(each.submitted) for each in evaluators)
    assert all(map(is_closed, evaluators[:-1]))
    # A thread gets its answers from one evaluator after the other, never from one that left.
    assert set(digests) <= {each.checkpoint.digest for each in evaluators}
