"""The engine at its limits: a full queue, limits of one example, too little memory, the end."""

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, wait

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.inference.engine import Engine
from hrm.inference.lane import Lane
from hrm.inference.lanes import Lanes
from hrm.inference.prediction import (
    DeviceMemoryError,
    EngineClosedError,
    EngineFailedError,
    EngineFullError,
    Prediction,
)
from hrm.model.network import HRM
from schemas import HaltedBy, HRMExample
from tests.support import reference as reference_data
from tests.support.engines import (
    DEADLINE,
    Gate,
    Works,
    assert_same,
    loop_predictions,
    wait_until,
)

STEPS = 4
"""ACT steps of each example, unless it halts before: enough to be put back in mid-evaluation, and a
quarter of the time that the reference's 16 take."""

OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: out of memory"),
)


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that limits the rows that a lane can hold or compute."""

    def limit(rows: int, *, at: str = "step", error: Exception = OUT_OF_MEMORY[0]) -> None:
        hold, admit, begin = Lane.__init__, Lane.admit, Lane.begin

        def check(wanted: int) -> None:
            if wanted > rows:
                raise error

        def limited_hold(
            self: Lane[str],
            network: HRM,
            capacity: int,
            *,
            halting: HaltedBy,
            keep_logits: bool,
        ) -> None:
            check(capacity)
            hold(self, network, capacity, halting=halting, keep_logits=keep_logits)

        def limited_admit(
            self: Lane[str],
            occupants: Sequence[str],
            examples: Sequence[HRMExample],
            limits: Sequence[int],
        ) -> None:
            check(len(self._rows) + len(occupants))
            admit(self, occupants, examples, limits)

        def limited_begin(self: Lane[str], chosen: Collection[str] | None = None) -> Works:
            check(sum(row is not None for row in self._rows))
            return begin(self, chosen)

        name, limited = {
            "memory": ("__init__", limited_hold),
            "admission": ("admit", limited_admit),
            "step": ("begin", limited_begin),
        }[at]
        monkeypatch.setattr(Lane, name, limited)

    return limit


# The queue.


def test_a_full_queue_says_so_and_when_there_is_room(
    network: HRM, examples: list[HRMExample], gate: Gate
) -> None:
    with contextlib.closing(Engine(network, slots=1, max_steps=1, queue_limit=2)) as engine:
        active = engine.submit(examples[0])
        assert gate.reached.wait(DEADLINE)
        assert engine.wait_for_room(0)
        waiting = [engine.submit(example) for example in examples[1:3]]
        assert engine.statistics.waiting == 2
        with pytest.raises(EngineFullError, match="2 examples wait"):
            engine.submit(examples[3])
        assert not engine.wait_for_room(0.01)
        gate.opened.set()
        assert engine.wait_for_room(DEADLINE)
        for future in (active, *waiting, engine.submit(examples[3])):
            assert future.result(DEADLINE).act_steps == 1


def test_closing_ends_the_wait_for_room(
    network: HRM, examples: list[HRMExample], gate: Gate
) -> None:
    engine = Engine(network, slots=1, max_steps=1, queue_limit=1)
    futures = [engine.submit(examples[0])]
    assert gate.reached.wait(DEADLINE)
    futures.append(engine.submit(examples[1]))
    closing = threading.Thread(target=engine.close)
    closing.start()
    assert engine.wait_for_room(DEADLINE)
    with pytest.raises(EngineClosedError):
        engine.submit(examples[2])
    gate.opened.set()
    closing.join(DEADLINE)
    assert all(future.done() for future in futures)


def test_the_queue_holds_what_all_slots_can_take_at_once(network: HRM) -> None:
    for slots, limit in ((1, 1024), (2000, 4000)):
        with contextlib.closing(Engine(network, slots=slots)) as engine:
            assert engine.queue_limit == limit


def test_what_is_cancelled_leaves_the_queue_at_the_next_turn(
    network: HRM, examples: list[HRMExample], gate: Gate
) -> None:
    second_step, go_on = threading.Event(), threading.Event()

    def hold_the_second_step() -> None:
        if len(gate.rows) == 2:
            second_step.set()
            assert go_on.wait(DEADLINE)

    gate.before_step = hold_the_second_step
    with contextlib.closing(Engine(network, slots=1, max_steps=2, queue_limit=2)) as engine:
        active = engine.submit(examples[0])
        assert gate.reached.wait(DEADLINE)
        first, cancelled = (engine.submit(example) for example in examples[1:3])
        assert cancelled.cancel()
        gate.opened.set()
        assert second_step.wait(DEADLINE)
        assert engine.wait_for_room(0)
        last = engine.submit(examples[3])
        assert not active.done()
        go_on.set()
        for future in (active, first, last):
            assert future.result(DEADLINE).act_steps == 2
    assert wait([cancelled], timeout=0).done, "its waiters are told"


def test_a_turn_asks_no_example_whether_it_was_cancelled(
    network: HRM, examples: list[HRMExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    is_cancelled = Future.cancelled

    def count(self: Future[Prediction]) -> bool:
        nonlocal asked
        asked += 1
        return is_cancelled(self)

    monkeypatch.setattr(Future, "cancelled", count)
    with contextlib.closing(Engine(network, slots=9)) as engine:
        for future in [engine.submit(each) for each in examples]:
            future.result(DEADLINE)
    assert asked == len(examples), "once each, when it is done"


def test_a_future_does_not_keep_the_engine_alive(network: HRM, examples: list[HRMExample]) -> None:
    engine = Engine(network, slots=1, max_steps=1)
    future = engine.submit(examples[0])
    assert future.result(DEADLINE).act_steps == 1
    engine.close()
    kept = weakref.ref(engine)
    del engine
    gc.collect()
    assert kept() is None


# Limits of one example.


@pytest.mark.parametrize("halting", HaltedBy)
def test_an_example_may_have_a_limit_of_its_own(
    network: HRM, examples: list[HRMExample], halting: HaltedBy
) -> None:
    limits = [1, None, 3, 20, 2]
    # No row needs more than three steps under q.
    wanted = [loop_predictions(halting, limit)[row] for row, limit in enumerate(limits)]
    with contextlib.closing(Engine(network, slots=5, halting=halting)) as engine:
        futures = [
            engine.submit(example, max_steps=limit)
            for example, limit in zip(examples, limits, strict=False)
        ]
        for future, each in zip(futures, wanted, strict=True):
            assert_same(future.result(DEADLINE), each)


# Counting.


def test_statistics_count_steps_slots_and_refills(
    network: HRM, examples: list[HRMExample], gate: Gate
) -> None:
    with contextlib.closing(Engine(network, slots=2, threads=1)) as engine:
        first = engine.submit(examples[0], max_steps=3)
        assert gate.reached.wait(DEADLINE)
        rest = [engine.submit(each, max_steps=2) for each in examples[1:3]]
        gate.opened.set()
        for future in (first, *rest):
            future.result(DEADLINE)
        wait_until(lambda: engine.statistics.busy_slots == 0)
        counted = engine.statistics
    # First one alone, then two at a time. The third takes a slot after the third step.
    assert gate.rows == [1, 2, 2, 1, 1]
    assert (counted.steps, counted.occupied) == (5, 7)
    assert counted.refills == 1, "the second, beside the first"
    assert counted.slot_reductions == 0


# Too little memory.


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("at", ["memory", "admission", "step"])
@pytest.mark.parametrize("halting", HaltedBy)
def test_with_too_little_memory_it_goes_on_with_fewer_slots_and_loses_nothing(
    network: HRM,
    examples: list[HRMExample],
    small_memory: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    halting: HaltedBy,
    at: str,
    error: Exception,
) -> None:
    small_memory(3, at=at, error=error)
    engine = Engine(network, slots=9, halting=halting, max_steps=STEPS)
    with contextlib.closing(engine):
        futures = [engine.submit(each) for each in examples]
        for future, wanted in zip(futures, loop_predictions(halting, STEPS), strict=True):
            assert_same(future.result(DEADLINE), wanted)
        assert 1 <= engine.statistics.slots <= 3
        assert 1 <= engine.statistics.slot_reductions <= 3
    assert "memory does not suffice" in caplog.text


def test_examples_that_are_put_back_keep_their_order(
    network: HRM, examples: list[HRMExample], gate: Gate, small_memory: Callable[..., None]
) -> None:
    order: list[int] = []
    with contextlib.closing(Engine(network, slots=4, max_steps=2)) as engine:
        blocker = engine.submit(examples[0])
        assert gate.reached.wait(DEADLINE)
        small_memory(1)
        for row in range(1, 7):
            future = engine.submit(examples[row])
            future.add_done_callback(lambda _, row=row: order.append(row))  # type: ignore[misc]
        gate.opened.set()
        blocker.result(DEADLINE)
        wait_until(lambda: len(order) == 6)
        assert engine.statistics.slots == 1
    assert order == sorted(order)


def test_a_snapshot_misses_no_example_that_is_put_back(
    network: HRM,
    examples: list[HRMExample],
    gate: Gate,
    small_memory: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clear, cleared = Lanes.clear, threading.Event()

    def clear_slowly(self: Lanes[str]) -> None:
        clear(self)
        cleared.set()
        time.sleep(0.05)  # for the snapshot, if the lock lets it through

    monkeypatch.setattr(Lanes, "clear", clear_slowly)
    with contextlib.closing(Engine(network, slots=9, max_steps=2)) as engine:
        first = engine.submit(examples[0])
        assert gate.reached.wait(DEADLINE)
        small_memory(3)
        futures = [first, *(engine.submit(each) for each in examples[1:])]
        gate.opened.set()
        assert cleared.wait(DEADLINE)
        now = engine.statistics
        for future in futures:
            future.result(DEADLINE)
    assert now.busy_slots + now.waiting == 9
    assert now.slots < 9
    assert now.slot_reductions > 0


def test_what_does_not_fit_alone_fails_alone(
    network: HRM,
    examples: list[HRMExample],
    expected: dict[HaltedBy, list[Prediction]],
    gate: Gate,
) -> None:
    def fail_at_first() -> None:
        if len(gate.rows) == 1:
            raise OUT_OF_MEMORY[0]

    gate.before_step = fail_at_first
    gate.opened.set()
    with contextlib.closing(Engine(network, slots=1)) as engine:
        with pytest.raises(torch.OutOfMemoryError):
            engine.submit(examples[0]).result(DEADLINE)
        assert_same(engine.submit(examples[1]).result(DEADLINE), expected[HaltedBy.MAX_STEPS][1])
        assert engine.statistics.slot_reductions == 0


def test_a_cache_of_memory_that_cannot_be_freed_does_not_end_the_engine(
    network: HRM,
    examples: list[HRMExample],
    expected: dict[HaltedBy, list[Prediction]],
    small_memory: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    small_memory(1)
    with contextlib.closing(Engine(network, slots=2, halting=HaltedBy.Q)) as engine:
        futures = [engine.submit(each) for each in examples]
        for future, wanted in zip(futures, expected[HaltedBy.Q], strict=True):
            assert_same(future.result(DEADLINE), wanted)
        assert engine.statistics.slots == 1


def test_an_engine_without_memory_for_one_slot_is_not_made(
    network: HRM, small_memory: Callable[..., None]
) -> None:
    small_memory(0, at="memory")
    with pytest.raises(DeviceMemoryError, match="take another device"):
        Engine(network, slots=4)


def test_when_no_memory_comes_back_every_future_fails(
    network: HRM, examples: list[HRMExample], gate: Gate, small_memory: Callable[..., None]
) -> None:
    engine = Engine(network, slots=2)
    first = engine.submit(examples[0])
    assert gate.reached.wait(DEADLINE)
    futures = [first, *(engine.submit(each) for each in examples[1:4])]
    small_memory(0, at="memory")
    small_memory(0)
    gate.opened.set()
    for future in futures:
        with pytest.raises((torch.OutOfMemoryError, DeviceMemoryError)):
            future.result(DEADLINE)
    engine.close()
    with pytest.raises(DeviceMemoryError):
        engine.submit(examples[0])


ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(ILLEGAL),
        RuntimeError(ILLEGAL),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    ],
)
def test_an_engine_whose_device_fails_ends_and_says_so(
    network: HRM, examples: list[HRMExample], gate: Gate, error: Exception
) -> None:
    def fail() -> None:
        raise error

    gate.before_step = fail
    engine = Engine(network, slots=2, threads=1)
    futures = [engine.submit(each) for each in examples[:4]]
    gate.opened.set()
    for future in futures:
        with pytest.raises(EngineFailedError, match=r"the device failed: .* was encountered$"):
            future.result(DEADLINE)
    with pytest.raises(EngineFailedError):
        engine.submit(examples[0])
    assert len(gate.rows) == 1, "nothing is tried on a device that failed"
    assert not engine.statistics.in_turn
    engine.close()


def test_the_statistics_show_answers_and_a_turn_that_does_not_end(
    network: HRM, examples: list[HRMExample], gate: Gate
) -> None:
    with contextlib.closing(Engine(network, slots=1, max_steps=1)) as engine:
        assert not engine.statistics.in_turn
        future = engine.submit(examples[0])
        assert gate.reached.wait(DEADLINE)
        now = engine.statistics
        assert (now.in_turn, now.turns, now.answered) == (True, 0, 0)
        gate.opened.set()
        future.result(DEADLINE)
        wait_until(lambda: not engine.statistics.in_turn)
        now = engine.statistics
        assert (now.turns, now.answered) == (1, 1)


@given(data=st.data(), slots=st.integers(1, 6), halting=st.sampled_from(HaltedBy))
@settings(max_examples=15, deadline=None)
def test_whatever_is_cancelled_or_fails_the_others_are_answered_as_usual(
    data: st.DataObject,
    slots: int,
    halting: HaltedBy,
) -> None:
    network, wanted = reference_data.network(), loop_predictions(halting, STEPS)
    begin, failing = Lane.begin, data.draw(st.sets(st.integers(1, 12), max_size=2))
    count = 0

    def begin_or_fail(self: Lane[str], chosen: Collection[str] | None = None) -> Works:
        nonlocal count
        count += 1
        if count in failing and engine.statistics.slots > 1:
            raise OUT_OF_MEMORY[0]
        return begin(self, chosen)

    rows = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=12))
    cancelled, others = (data.draw(st.sets(st.sampled_from(range(len(rows))))) for _ in range(2))
    examples = reference_data.examples()
    with (
        contextlib.closing(
            Engine(network, slots=slots, halting=halting, max_steps=STEPS)
        ) as engine,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(Lane, "begin", begin_or_fail)
        futures: Sequence[Future[Prediction]] = [
            engine.submit(examples[row], urgent=place not in others)
            for place, row in enumerate(rows)
        ]
        for position in cancelled:
            futures[position].cancel()
        for row, future in zip(rows, futures, strict=True):
            if not future.cancelled():
                assert_same(future.result(DEADLINE), wanted[row])
        wait_until(lambda: engine.statistics.busy_slots == 0)


# The end.


def test_a_callback_may_close_the_engine(network: HRM, examples: list[HRMExample]) -> None:
    engine = Engine(network, slots=1, max_steps=1)
    closed = threading.Event()

    def close(_: Future[Prediction]) -> None:
        engine.close()
        closed.set()

    engine.submit(examples[0]).add_done_callback(close)
    assert closed.wait(DEADLINE)
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.submit(examples[0])


def test_a_callback_may_submit_again(network: HRM, examples: list[HRMExample]) -> None:
    again: list[Future[Prediction]] = []
    with contextlib.closing(Engine(network, slots=1, max_steps=1)) as engine:
        engine.submit(examples[0]).add_done_callback(
            lambda _: again.append(engine.submit(examples[1]))
        )
        wait_until(lambda: bool(again))
        assert again[0].result(DEADLINE).act_steps == 1
