"""The engine answers as the plain loop does, whatever else is in it and whatever goes wrong."""

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.inference.engine import Engine
from hrm.inference.prediction import EngineClosedError, InferenceError, Prediction
from hrm.model.batch import ExampleError
from hrm.model.network import HRM
from schemas import HaltedBy, HRMExample
from tests.support import reference as reference_data
from tests.support.engines import (
    DEADLINE,
    Gate,
    Predictions,
    assert_same,
    engine_of,
    loop_predictions,
    wait_until,
)

# The same answers as the plain loop.


@pytest.mark.parametrize("halting", HaltedBy)
@pytest.mark.parametrize("slots", [1, 2, 3, 9, 64])
def test_predictions_are_those_of_the_plain_loop_whatever_the_slots(
    network: HRM,
    examples: list[HRMExample],
    expected: dict[HaltedBy, list[Prediction]],
    slots: int,
    halting: HaltedBy,
) -> None:
    with engine_of(network, slots=slots, halting=halting) as engine:
        futures = [engine.submit(example) for example in examples]
        for future, wanted in zip(futures, expected[halting], strict=True):
            assert_same(future.result(DEADLINE), wanted)


def test_the_loop_halts_early_and_late(expected: dict[HaltedBy, list[Prediction]]) -> None:
    assert {wanted.act_steps for wanted in expected[HaltedBy.Q]} == {1, 2, 3}
    assert {wanted.halted_by for wanted in expected[HaltedBy.Q]} == {HaltedBy.Q}
    assert {wanted.act_steps for wanted in expected[HaltedBy.MAX_STEPS]} == {16}


@pytest.mark.parametrize("halting", HaltedBy)
def test_the_step_limit_holds_and_is_named(
    network: HRM, examples: list[HRMExample], halting: HaltedBy
) -> None:
    wanted = loop_predictions(halting, max_steps=2)
    with engine_of(network, slots=4, halting=halting, max_steps=2) as engine:
        futures = [engine.submit(example) for example in examples]
        given = [future.result(DEADLINE) for future in futures]
    for prediction, other in zip(given, wanted, strict=True):
        assert_same(prediction, other)
    by_limit = [prediction.halted_by is HaltedBy.MAX_STEPS for prediction in given]
    # Under q, all but the third halt before the limit.
    assert by_limit == [halting is HaltedBy.MAX_STEPS or row == 2 for row in range(9)]


@given(
    bursts=st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=6), min_size=1, max_size=4),
    slots=st.integers(1, 7),
    halting=st.sampled_from(HaltedBy),
    threads=st.integers(1, 3),
)
@settings(max_examples=15, deadline=None)
def test_predictions_do_not_depend_on_order_bursts_or_threads(
    expected: dict[HaltedBy, list[Prediction]],
    bursts: list[list[int]],
    slots: int,
    halting: HaltedBy,
    threads: int,
) -> None:
    examples = reference_data.examples()
    network = reference_data.network()
    with (
        engine_of(network, slots=slots, halting=halting, threads=threads) as engine,
        ThreadPoolExecutor(len(bursts)) as senders,
    ):

        def burst(rows: list[int]) -> list[Prediction]:
            futures = [engine.submit(examples[row]) for row in rows]
            return [future.result(DEADLINE) for future in futures]

        for rows, predictions in zip(bursts, senders.map(burst, bursts), strict=True):
            for row, prediction in zip(rows, predictions, strict=True):
                assert_same(prediction, expected[halting][row])


def test_tokens_fill_the_sequence_length_whatever_the_target(
    network: HRM, examples: list[HRMExample]
) -> None:
    short = examples[0].model_copy(update={"target_sequence": (0, 11)})
    with engine_of(network, slots=2, halting=HaltedBy.Q) as engine:
        first, second = engine.submit(examples[0]), engine.submit(short)
        assert first.result(DEADLINE).tokens == second.result(DEADLINE).tokens
        assert len(first.result().tokens) == 24


def test_the_time_of_turns_is_counted(network: HRM, examples: list[HRMExample]) -> None:
    began = time.perf_counter()
    with engine_of(network, slots=2, halting=HaltedBy.Q) as engine:
        assert engine.statistics.busy_seconds == 0
        engine.submit(examples[0]).result(DEADLINE)
    assert 0 < engine.statistics.busy_seconds < time.perf_counter() - began


# Slots.


def test_work_never_exceeds_the_slots_and_fills_them(
    network: HRM, examples: list[HRMExample], gate: Gate
) -> None:
    with engine_of(network, slots=3, halting=HaltedBy.Q) as engine:
        busy: list[int] = []
        waiting: list[int] = []

        def note() -> None:
            now = engine.statistics
            busy.append(now.busy_slots)
            waiting.append(now.waiting)

        gate.before_step = note
        first = engine.submit(examples[0])
        assert gate.reached.wait(DEADLINE)
        futures = [engine.submit(example) for example in examples * 2]
        gate.opened.set()
        for future in (first, *futures):
            future.result(DEADLINE)
        assert engine.statistics.slots == 3
        wait_until(lambda: engine.statistics.busy_slots == 0)
    assert busy[0] == 1
    # A freed slot is taken at once: steps have empty slots only when no example waits any more.
    end = waiting.index(0, 1)
    assert busy[1:end] == gate.rows[1:end] == [3] * (end - 1)
    assert max(busy) == 3
    assert end > 5


def test_an_example_leaves_when_it_halts_and_the_next_takes_its_slot(
    network: HRM, examples: list[HRMExample], gate: Gate
) -> None:
    order: list[int] = []

    def note(row: int, _: Predictions) -> None:
        order.append(row)

    with engine_of(network, slots=2, halting=HaltedBy.Q) as engine:
        blocker = engine.submit(examples[0])
        assert gate.reached.wait(DEADLINE)
        # Row 2 needs three steps, the others one or two.
        for row in (2, 0, 4, 1):
            engine.submit(examples[row]).add_done_callback(partial(note, row))
        gate.opened.set()
        blocker.result(DEADLINE)
        wait_until(lambda: len(order) == 4)
    assert order == [0, 2, 4, 1]
    assert gate.rows == [1, 2, 2, 2, 1]


def test_a_cancelled_example_costs_no_step_and_frees_its_slot_at_once(
    network: HRM,
    examples: list[HRMExample],
    expected: dict[HaltedBy, list[Prediction]],
    gate: Gate,
) -> None:
    with engine_of(network, slots=1) as engine:
        first = engine.submit(examples[0])
        assert gate.reached.wait(DEADLINE)
        cancelled = [first, *(engine.submit(example) for example in examples[1:5])]
        last = engine.submit(examples[5])
        assert all(future.cancel() for future in cancelled)
        gate.opened.set()
        assert_same(last.result(DEADLINE), expected[HaltedBy.MAX_STEPS][5])
    assert gate.rows == [1] * 17, "one step of the first, sixteen of the last"
    assert wait(cancelled, timeout=0).not_done == set(), "their waiters are told"
    for future in cancelled:
        with pytest.raises(CancelledError):
            future.result()


def test_an_engine_whose_only_work_was_cancelled_goes_on(
    network: HRM, examples: list[HRMExample], gate: Gate
) -> None:
    with engine_of(network, slots=1, max_steps=1) as engine:
        first = engine.submit(examples[0])
        assert gate.reached.wait(DEADLINE)
        assert engine.submit(examples[1]).cancel()
        gate.opened.set()
        first.result(DEADLINE)
        wait_until(lambda: engine.statistics.waiting == 0)
        assert engine.submit(examples[2]).result(DEADLINE).act_steps == 1


# What goes wrong.


@pytest.mark.parametrize("slots", [1, 4, 9])
def test_a_puzzle_without_a_finite_answer_fails_alone(
    network: HRM,
    examples: list[HRMExample],
    expected: dict[HaltedBy, list[Prediction]],
    slots: int,
) -> None:
    # Only the first example has this puzzle.
    network.puzzle_emb.weights[examples[0].puzzle_id] = torch.nan
    with engine_of(network, slots=slots) as engine:
        broken, *sound = [engine.submit(example) for example in examples]
        with pytest.raises(InferenceError, match="not finite"):
            broken.result(DEADLINE)
        for future, wanted in zip(sound, expected[HaltedBy.MAX_STEPS][1:], strict=True):
            assert_same(future.result(DEADLINE), wanted)


@pytest.mark.parametrize("halting", HaltedBy)
def test_weights_that_are_not_finite_answer_nothing(
    network: HRM, examples: list[HRMExample], halting: HaltedBy
) -> None:
    with torch.no_grad():
        network.lm_head.weight[3, 5] = torch.inf
    with engine_of(network, slots=4, halting=halting) as engine:
        for future in [engine.submit(example) for example in examples]:
            with pytest.raises(InferenceError):
                future.result(DEADLINE)


def test_a_q_head_that_is_not_finite_answers_nothing(
    network: HRM, examples: list[HRMExample]
) -> None:
    with torch.no_grad():
        network.q_head.weight.fill_(torch.nan)
    with engine_of(network, slots=4) as engine, pytest.raises(InferenceError):
        engine.submit(examples[0]).result(DEADLINE)


def test_an_error_in_a_step_fails_those_in_work_and_no_other(
    network: HRM,
    examples: list[HRMExample],
    expected: dict[HaltedBy, list[Prediction]],
    gate: Gate,
) -> None:
    def fail_once() -> None:
        if len(gate.rows) == 2:
            raise RuntimeError("lost device")

    gate.before_step = fail_once
    with engine_of(network, slots=2) as engine:
        first = engine.submit(examples[0])
        assert gate.reached.wait(DEADLINE)
        second, third = engine.submit(examples[1]), engine.submit(examples[2])
        gate.opened.set()
        for future in (first, second):
            with pytest.raises(RuntimeError, match="lost device"):
                future.result(DEADLINE)
        assert_same(third.result(DEADLINE), expected[HaltedBy.MAX_STEPS][2])
        assert_same(engine.submit(examples[3]).result(DEADLINE), expected[HaltedBy.MAX_STEPS][3])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("method", ["embed", "initial_state", "token_logits"])
def test_an_error_outside_a_step_fails_those_in_work_and_the_engine_goes_on(
    network: HRM, examples: list[HRMExample], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("lost device")

    with engine_of(network, slots=2, max_steps=1) as engine:
        with monkeypatch.context() as broken:
            broken.setattr(network, method, fail)
            with pytest.raises(RuntimeError, match="lost device"):
                engine.submit(examples[0]).result(1)
        assert engine.submit(examples[0]).result(DEADLINE).act_steps == 1


@pytest.mark.parametrize(
    ("changes", "wording"),
    [
        ({"puzzle_id": 50}, "puzzle_id 50"),
        ({"puzzle_id": 10**400}, "puzzle_id 1000"),
        ({"input_sequence": (0,) * 25}, "25 tokens"),
        ({"target_sequence": (0,) * 100}, "100 tokens"),
    ],
)
def test_what_the_network_cannot_take_is_refused_at_once(
    network: HRM, examples: list[HRMExample], changes: dict[str, object], wording: str
) -> None:
    with engine_of(network, slots=1, max_steps=1) as engine:
        with pytest.raises(ExampleError, match=wording):
            engine.submit(examples[0].model_copy(update=changes))
        assert engine.submit(examples[0]).result(DEADLINE).act_steps == 1


# The end.


def test_close_finishes_what_is_in_slots_and_fails_what_waits(
    network: HRM,
    examples: list[HRMExample],
    expected: dict[HaltedBy, list[Prediction]],
    gate: Gate,
) -> None:
    engine = Engine(network, slots=1, threads=1)
    active = engine.submit(examples[0])
    assert gate.reached.wait(DEADLINE)
    waiting = [engine.submit(example) for example in examples[1:4]]
    assert waiting[0].cancel()
    closing = threading.Thread(target=engine.close)
    closing.start()
    wait_until(lambda: engine._closed)
    with pytest.raises(EngineClosedError):
        engine.submit(examples[4])
    assert not active.done()
    gate.opened.set()
    closing.join(DEADLINE)
    assert not closing.is_alive()
    assert_same(active.result(0), expected[HaltedBy.MAX_STEPS][0])
    assert waiting[0].cancelled()
    for future in waiting[1:]:
        with pytest.raises(EngineClosedError):
            future.result(0)
    assert engine.statistics.busy_slots == 0
    assert gate.rows == [1] * 16


def test_an_idle_engine_closes_at_once_and_again(network: HRM, examples: list[HRMExample]) -> None:
    engine = Engine(network, slots=1, threads=1)
    engine.close()
    engine.close()
    assert not engine._thread.is_alive()
    with pytest.raises(EngineClosedError):
        engine.submit(examples[0])
