"""Urgent examples go before others, which still end some time."""

import contextlib
import threading
from collections.abc import Callable, Collection
from concurrent.futures import wait
from functools import partial

import pytest
import torch

import hrm.inference.engine
from hrm.inference.engine import URGENT_TURNS, Engine
from hrm.inference.lane import Lane
from hrm.inference.lanes import Lanes
from hrm.inference.prediction import EngineClosedError, EngineFullError, Prediction
from hrm.model.network import HRM
from schemas import HaltedBy, HRMExample
from tests.support import reference as reference_data
from tests.support.engines import (
    DEADLINE,
    Gate,
    Predictions,
    Turns,
    Works,
    assert_same,
    engine_of,
    wait_until,
)

EXAMPLES = reference_data.examples()
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


def at_first(action: Callable[[], object]) -> Callable[[int], None]:
    """Return a function that runs `action` at the first step."""

    def run(step: int) -> None:
        if step == 1:
            action()

    return run


# The queues.


def test_urgent_examples_leave_the_queue_before_others(network: HRM, gate: Gate) -> None:
    order: list[str] = []
    with engine_of(network, slots=1, max_steps=1) as engine:
        engine.submit(EXAMPLES[0])
        assert gate.reached.wait(DEADLINE)
        for name in ("other 1", "other 2", "urgent 1", "urgent 2"):
            future = engine.submit(EXAMPLES[1], urgent=name.startswith("urgent"))
            future.add_done_callback(lambda _, name=name: order.append(name))  # type: ignore[misc]
        assert engine.statistics.waiting == 4
        gate.opened.set()
        wait_until(lambda: len(order) == 4)
    assert order == ["urgent 1", "urgent 2", "other 1", "other 2"]


def test_a_queue_full_of_others_refuses_no_urgent_example(network: HRM, gate: Gate) -> None:
    with contextlib.closing(Engine(network, slots=1, max_steps=1, queue_limit=2)) as engine:
        futures = [engine.submit(EXAMPLES[0])]
        assert gate.reached.wait(DEADLINE)
        for urgent in (False, True):
            for room in (2, 1):
                assert engine.wait_for_room(0, urgent=urgent), room
                futures.append(engine.submit(EXAMPLES[1], urgent=urgent))
            with pytest.raises(EngineFullError, match="2 examples wait"):
                engine.submit(EXAMPLES[1], urgent=urgent)
            assert not engine.wait_for_room(0, urgent=urgent)
        gate.opened.set()
        for future in futures:
            assert future.result(DEADLINE).act_steps == 1


# Slots.


def test_an_urgent_example_takes_a_slot_in_reserve_and_the_next_turns(
    network: HRM, turns: Turns
) -> None:
    with contextlib.closing(Engine(network, slots=2, max_steps=3, threads=1)) as engine:

        def submit_others() -> None:
            others.extend(engine.submit(EXAMPLES[row], urgent=False) for row in (1, 2))
            urgent.append(engine.submit(EXAMPLES[4], max_steps=2))

        urgent: list[Predictions] = []
        others: list[Predictions] = []
        turns.at_step = at_first(submit_others)
        others.append(engine.submit(EXAMPLES[0], urgent=False))
        wait_until(lambda: len(others) == 3)
        assert urgent[0].result(DEADLINE).act_steps == 2
        for other in others:
            assert other.result(DEADLINE).act_steps == 3
    # The third of the others waits for a slot of the first.
    assert turns.examples == [[0], [4], [4], [0], [1], [0], [1], [1], [2], [2], [2]]


def test_others_leave_the_reserve_alone(network: HRM, gate: Gate) -> None:
    busy: list[int] = []
    gate.before_step = lambda: busy.append(engine.statistics.busy_slots)
    gate.opened.set()
    with engine_of(network, slots=3, max_steps=2) as engine:
        for future in [engine.submit(each, urgent=False) for each in EXAMPLES]:
            future.result(DEADLINE)
        assert engine.statistics.slots == 3
    assert max(busy) == 3


def test_beside_others_urgent_examples_have_no_more_slots_than_alone(
    network: HRM, gate: Gate
) -> None:
    with engine_of(network, slots=2, max_steps=2) as engine:
        busy: list[tuple[int, int]] = []

        def note() -> None:
            now = engine.statistics
            busy.append((now.busy_slots, now.waiting))

        gate.before_step = note
        engine.submit(EXAMPLES[0], urgent=False)
        assert gate.reached.wait(DEADLINE)
        futures = [engine.submit(each, urgent=row > 1) for row, each in enumerate(EXAMPLES)]
        gate.opened.set()
        for future in futures:
            future.result(DEADLINE)
    assert busy[0] == (1, 9)
    assert busy[1] == (3, 7), "two urgent ones beside the first"
    assert max(count for count, _ in busy) == 3


# Turns.


def test_a_turn_of_others_ends_early_for_an_urgent_example_and_goes_on_where_it_ended(
    network: HRM, turns: Turns
) -> None:
    with contextlib.closing(Engine(network, slots=3, max_steps=3, threads=1)) as engine:
        others: list[Predictions] = []

        def act(step: int) -> None:
            if step == 1:
                others.extend(engine.submit(EXAMPLES[row], urgent=False) for row in (1, 2))
            if step in {1, 3}:
                engine.submit(EXAMPLES[4], max_steps=1)

        turns.at_step = act
        others.append(engine.submit(EXAMPLES[0], urgent=False))
        wait_until(lambda: len(others) == 3)
        for other in others:
            assert other.result(DEADLINE).act_steps == 3
        counted = engine.statistics
    assert turns.examples[:7] == [[0], [4], [0], [4], [1], [2], [0]]
    assert counted.occupied == 3 * 3 + 2
    assert counted.steps < counted.occupied


@pytest.mark.parametrize("urgent", [True, False])
def test_others_are_computed_together_unless_an_urgent_example_came_lately(
    network: HRM, gate: Gate, monkeypatch: pytest.MonkeyPatch, *, urgent: bool
) -> None:
    monkeypatch.setattr(hrm.inference.engine, "CALM_TURNS", 3)
    with engine_of(network, slots=2, max_steps=6) as engine:
        futures = [engine.submit(EXAMPLES[0], urgent=False)]
        assert gate.reached.wait(DEADLINE)
        futures.append(engine.submit(EXAMPLES[1], urgent=False))
        if urgent:
            engine.submit(EXAMPLES[2], max_steps=1)
        gate.opened.set()
        for future in futures:
            future.result(DEADLINE)
    # The first alone; an urgent one, and two turns with the others one by one; then together.
    begun = [1, 1, 1, 1, 1, 1] if urgent else [1]
    together = 3 if urgent else 5
    assert gate.rows == [*begun, *[2] * together, 1]


def test_others_end_under_an_unbroken_load_of_urgent_examples(network: HRM, turns: Turns) -> None:
    urgent, other, steps = 2, 0, 3
    with contextlib.closing(Engine(network, slots=4, max_steps=1, threads=1)) as engine:
        ended = threading.Event()

        def submit_urgent(*_: object) -> None:
            if not ended.is_set():
                engine.submit(EXAMPLES[urgent]).add_done_callback(submit_urgent)

        def submit_two() -> None:
            submit_urgent()
            submit_urgent()

        turns.at_step = at_first(submit_two)
        first = engine.submit(EXAMPLES[other], max_steps=steps, urgent=False)
        first.add_done_callback(lambda _: ended.set())
        assert first.result(DEADLINE).act_steps == steps
    between = [[urgent]] * URGENT_TURNS
    end = 1 + (steps - 1) * (URGENT_TURNS + 1)
    assert turns.examples[:end] == [[other], *([*between, [other]] * (steps - 1))]


def test_urgent_examples_in_as_many_slots_as_they_may_have_are_all_in_a_turn(
    network: HRM, turns: Turns
) -> None:
    with contextlib.closing(Engine(network, slots=2, max_steps=2, threads=1)) as engine:
        submitted: list[Predictions] = []

        def submit_two() -> None:
            submitted.extend(engine.submit(EXAMPLES[row]) for row in (4, 6))

        turns.at_step = at_first(submit_two)
        other = engine.submit(EXAMPLES[0], urgent=False)
        other.result(DEADLINE)
    assert turns.examples == [[0], [4, 6], [4, 6], [0]]


def test_on_a_gpu_an_urgent_example_joins_the_others_in_the_next_step(
    network: HRM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lane, "_capture", lambda _: lambda work: work)
    monkeypatch.setattr(Lane, "is_asynchronous", property(lambda _: True))
    begin, rows = Lane.begin, list[int]()
    submitted: list[Predictions] = []

    def note(self: Lane[object], chosen: Collection[object] | None = None) -> Works:
        assert chosen is None
        works = begin(self, chosen)
        rows.append(works[0][1])
        if len(rows) == 1:
            submitted.extend(engine.submit(each, urgent=False) for each in EXAMPLES[1:3])
            submitted.append(engine.submit(EXAMPLES[3]))
        return works

    monkeypatch.setattr(Lane, "begin", note)
    with engine_of(network, slots=1, max_steps=2) as engine:
        submitted.append(engine.submit(EXAMPLES[0], urgent=False))
        wait_until(lambda: len(submitted) == 4)
        for future in submitted:
            assert future.result(DEADLINE).act_steps == 2
    # An urgent one in reserve; then the others, one after the other.
    assert rows[:7] == [1, 2, 1, 1, 1, 1, 1]


def test_the_reserve_is_an_eighth_of_the_slots_on_a_gpu_and_at_least_one(
    network: HRM, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = Lanes[str]([network], 64, halting=HaltedBy.Q, keep_logits=False, threads=1)
    assert (lanes.slots, lanes.reserve) == (64, 64)
    monkeypatch.setattr(lanes, "_is_cpu", False)
    assert [lanes._reserve_of(slots) for slots in (0, 1, 8, 64, 512)] == [0, 1, 1, 8, 64]
    lanes.close()


# What goes wrong.


def test_a_cancelled_urgent_example_leaves_reserve_and_queue(network: HRM, turns: Turns) -> None:
    with contextlib.closing(Engine(network, slots=1, max_steps=2, threads=1)) as engine:
        cancelled: list[Predictions] = []

        def act(step: int) -> None:
            if step == 1:
                cancelled.extend(engine.submit(EXAMPLES[row]) for row in (4, 6))
            if step == 2:
                assert engine.statistics.waiting == 1
                assert all(each.cancel() for each in cancelled)

        turns.at_step = act
        other = engine.submit(EXAMPLES[0], urgent=False)
        assert other.result(DEADLINE).act_steps == 2
    assert turns.examples == [[0], [4], [0]]
    assert not wait(cancelled, timeout=0).not_done, "their waiters are told"


@pytest.mark.parametrize("slots", [1, 4])
def test_without_memory_both_kinds_start_again_in_their_order(
    network: HRM,
    examples: list[HRMExample],
    expected: dict[HaltedBy, list[Prediction]],
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    slots: int,
) -> None:
    order: list[int] = []
    begin = Lane.begin

    def begin_one(self: Lane[object], chosen: Collection[object] | None = None) -> Works:
        if sum(row is not None for row in self._rows) > 1:
            raise OUT_OF_MEMORY
        return begin(self, chosen)

    with engine_of(network, slots=slots) as engine:
        futures = [engine.submit(examples[0], urgent=False)]
        assert gate.reached.wait(DEADLINE)
        monkeypatch.setattr(Lane, "begin", begin_one)
        futures += [engine.submit(examples[row], urgent=row > 3) for row in range(1, 7)]
        for row, future in enumerate(futures):
            future.add_done_callback(partial(lambda row, _: order.append(row), row))
        gate.opened.set()
        for row, future in enumerate(futures):
            assert_same(future.result(DEADLINE), expected[HaltedBy.MAX_STEPS][row])
        assert engine.statistics.slots == 1
    assert order == [4, 5, 6, 0, 1, 2, 3]


def test_close_finishes_both_kinds_in_slots_and_fails_both_in_the_queues(
    network: HRM, turns: Turns
) -> None:
    engine = Engine(network, slots=1, max_steps=2, threads=1)
    others: list[Predictions] = []
    urgent: list[Predictions] = []
    in_reserve, go_on = threading.Event(), threading.Event()

    def act(step: int) -> None:
        if step == 1:
            others.append(engine.submit(EXAMPLES[1], urgent=False))
            urgent.extend(engine.submit(EXAMPLES[row]) for row in (4, 6))
        if step == 2:
            in_reserve.set()
            assert go_on.wait(DEADLINE)

    turns.at_step = act
    first = engine.submit(EXAMPLES[0], urgent=False)
    assert in_reserve.wait(DEADLINE)
    closing = threading.Thread(target=engine.close)
    closing.start()
    wait_until(lambda: engine._closed)
    go_on.set()
    closing.join(DEADLINE)
    assert first.result(0).act_steps == urgent[0].result(0).act_steps == 2
    for future in (others[0], urgent[1]):
        with pytest.raises(EngineClosedError):
            future.result(0)
    assert turns.examples == [[0], [4], [4], [0]]
