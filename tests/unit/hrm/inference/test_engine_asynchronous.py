"""The engine's order of work on a GPU, where it answers a step late: the same answers.

What cannot run here is replaced: a capture is the work itself, and the device is the CPU, which
has always finished by the time that it is asked.
"""

import contextlib
from collections.abc import Callable, Collection

import pytest
import torch

from hrm.inference.engine import Engine
from hrm.inference.lane import Lane
from hrm.inference.prediction import EngineClosedError, InferenceError, Prediction
from schemas import HaltedBy
from tests.support import reference as reference_data
from tests.support.engines import (
    DEADLINE,
    Works,
    assert_same,
    loop_predictions,
    wait_until,
)


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(work: Callable[[], None]) -> Callable[[], None]:
        return work

    monkeypatch.setattr(Lane, "_capture", lambda _: capture)
    monkeypatch.setattr(Lane, "is_asynchronous", property(lambda _: True))


@pytest.mark.parametrize("halting", HaltedBy)
@pytest.mark.parametrize("slots", [1, 3, 9, 64])
def test_predictions_are_those_of_the_plain_loop(slots: int, halting: HaltedBy) -> None:
    examples, wanted = reference_data.examples() * 2, loop_predictions(halting) * 2
    with contextlib.closing(
        Engine(reference_data.network(), slots=slots, halting=halting)
    ) as engine:
        futures = [engine.submit(example) for example in examples]
        for future, each in zip(futures, wanted, strict=True):
            assert_same(future.result(DEADLINE), each)
        wait_until(lambda: engine.statistics.busy_slots == 0)


def test_the_last_answer_does_not_wait_for_another_example() -> None:
    with contextlib.closing(Engine(reference_data.network(), slots=2, max_steps=1)) as engine:
        for example in reference_data.examples():
            assert engine.submit(example).result(DEADLINE).act_steps == 1


@pytest.mark.parametrize("failing_step", [1, 2, 3, 4])
def test_out_of_memory_loses_no_example_in_work_and_no_undelivered_answer(
    monkeypatch: pytest.MonkeyPatch, failing_step: int
) -> None:
    begin, count = Lane.begin, 0

    def begin_or_fail(self: Lane[object], chosen: Collection[object] | None = None) -> Works:
        nonlocal count
        count += 1
        if count == failing_step:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return begin(self, chosen)

    monkeypatch.setattr(Lane, "begin", begin_or_fail)
    with contextlib.closing(
        Engine(reference_data.network(), slots=4, halting=HaltedBy.Q)
    ) as engine:
        futures = [engine.submit(example) for example in reference_data.examples()]
        for future, each in zip(futures, loop_predictions(HaltedBy.Q), strict=True):
            assert_same(future.result(DEADLINE), each)
        assert engine.statistics.slot_reductions == 1


def test_members_of_an_ensemble_halt_each_for_itself_and_one_may_fail() -> None:
    broken = reference_data.network()
    broken.puzzle_emb.weights[reference_data.examples()[0].puzzle_id] = torch.nan
    given: list[list[Prediction]] = []

    def join(members: list[Prediction]) -> Prediction:
        given.append(members)
        return members[0]

    networks = [reference_data.network(), broken]
    with contextlib.closing(
        Engine(networks, slots=3, halting=HaltedBy.Q, join=join)  # type: ignore[arg-type]
    ) as engine:
        first, *others = [engine.submit(each) for each in reference_data.examples()]
        with pytest.raises(InferenceError):
            first.result(DEADLINE)
        for future, each in zip(others, loop_predictions(HaltedBy.Q)[1:], strict=True):
            assert_same(future.result(DEADLINE), each)
        wait_until(lambda: engine.statistics.busy_slots == 0)
    assert len(given) == 8
    assert all(one == other for one, other in given)


def test_an_example_that_one_member_fails_leaves_another_at_the_step_in_flight() -> None:
    examples = reference_data.examples()
    networks = [reference_data.network(), reference_data.network()]
    networks[0].puzzle_emb.weights[examples[0].puzzle_id] = torch.nan
    for network, limit in zip(networks, (2, 3), strict=True):
        network.config = network.config.model_copy(update={"halt_max_steps": limit})
    with contextlib.closing(Engine(networks, slots=9, join=lambda members: members[1])) as engine:
        first, *others = [engine.submit(each) for each in examples]
        with pytest.raises(InferenceError):
            first.result(DEADLINE)
        wanted = loop_predictions(HaltedBy.MAX_STEPS, 3)[1:]
        for future, each in zip(others, wanted, strict=True):
            assert_same(future.result(DEADLINE), each)
        wait_until(lambda: engine.statistics.busy_slots == 0)


def test_without_memory_half_the_slots_are_kept_however_few_are_in_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = Lane.begin

    def begin_or_fail(self: Lane[object], chosen: Collection[object] | None = None) -> Works:
        if engine.statistics.slots > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return begin(self, chosen)

    monkeypatch.setattr(Lane, "begin", begin_or_fail)
    with contextlib.closing(Engine(reference_data.network(), slots=8, max_steps=1)) as engine:
        assert engine.submit(reference_data.examples()[0]).result(DEADLINE).act_steps == 1
        assert engine.statistics.slots == 4


def test_closing_delivers_what_has_halted() -> None:
    engine = Engine(reference_data.network(), slots=3, max_steps=2)
    futures = [engine.submit(example) for example in reference_data.examples()]
    wait_until(futures[0].done)
    engine.close()
    assert all(future.done() for future in futures)
    for future, each in zip(futures, loop_predictions(HaltedBy.MAX_STEPS, 2), strict=True):
        if isinstance(future.exception(), EngineClosedError):
            continue
        assert_same(future.result(), each)
