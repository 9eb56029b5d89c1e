"""The order of turns on a CPU: all examples if no slot is free, else those with the least to do."""

import contextlib
import threading
from collections import deque
from collections.abc import Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.inference.engine import Engine
from hrm.inference.lane import Lane
from hrm.inference.prediction import Prediction
from hrm.model.network import HRM
from schemas import HaltedBy
from tests.support import reference as reference_data
from tests.support.engines import (
    DEADLINE,
    Predictions,
    Turns,
    Works,
    assert_same,
    continue_always,
    loop_predictions,
    wait_until,
)

EXAMPLES = reference_data.examples()

STEPS = 4
"""ACT steps of each example, unless it halts before: enough for many orders of turns, and a quarter
of the time that the reference's 16 take."""


def test_under_q_a_turn_is_for_the_example_with_the_fewest_steps_done(
    network: HRM, turns: Turns
) -> None:
    with contextlib.closing(Engine(network, slots=4, halting=HaltedBy.Q, threads=1)) as engine:
        later: list[Predictions] = []

        def submit_others(step: int) -> None:
            if step == 1:
                later.extend(engine.submit(EXAMPLES[row]) for row in (4, 6))

        turns.at_step = submit_others
        # The first example needs three steps, the others need two.
        first = engine.submit(EXAMPLES[2])
        wait_until(lambda: len(later) == 2 and engine.statistics.busy_slots == 0)
        for future, row in zip((first, *later), (2, 4, 6), strict=True):
            assert_same(future.result(DEADLINE), loop_predictions(HaltedBy.Q)[row])
        counted = engine.statistics
    # The oldest first among equals.
    assert turns.examples == [[2], [4], [6], [2], [4], [6], [2]]
    assert (counted.steps, counted.occupied) == (7, 7)


def test_at_fixed_steps_a_turn_is_for_the_example_with_the_fewest_left(
    network: HRM, turns: Turns
) -> None:
    with contextlib.closing(Engine(network, slots=4, max_steps=3, threads=1)) as engine:
        later: list[Predictions] = []

        def submit_others(step: int) -> None:
            if step == 1:
                later.append(engine.submit(EXAMPLES[1], max_steps=1))
                later.append(engine.submit(EXAMPLES[2]))

        turns.at_step = submit_others
        engine.submit(EXAMPLES[0])
        wait_until(lambda: len(later) == 2 and engine.statistics.busy_slots == 0)
    assert turns.examples == [[0], [1], [0], [0], [2], [2], [2]]


@pytest.mark.parametrize(("threads", "turn"), [(1, 1), (2, 1), (3, 3), (4, 4)])
def test_two_threads_share_an_example_and_more_threads_have_one_each(
    network: HRM, threads: int, turn: int
) -> None:
    begin, engine = Lane.begin, Engine(network, slots=10, max_steps=2, threads=threads)
    all_submitted, chosen_together = threading.Event(), list[int]()

    def note(self: Lane[object], chosen: Collection[object] | None = None) -> Works:
        assert all_submitted.wait(DEADLINE)
        assert chosen is not None
        chosen_together.append(len(chosen))
        return begin(self, chosen)

    with contextlib.closing(engine), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lane, "begin", note)
        futures = [engine.submit(each) for each in EXAMPLES]
        all_submitted.set()
        for future in futures:
            assert future.result(DEADLINE).act_steps == 2
    assert max(chosen_together) == turn


def test_while_examples_wait_for_slots_a_long_one_is_in_every_turn(
    network: HRM, turns: Turns
) -> None:
    continue_always(network)
    long, short = 2, 0
    with contextlib.closing(Engine(network, slots=2, halting=HaltedBy.Q, threads=1)) as engine:

        def submit_short(*_: object) -> None:
            if len(turns.examples) < 6:
                engine.submit(EXAMPLES[short], max_steps=1).add_done_callback(submit_short)

        def submit_three(step: int) -> None:
            for _ in range(3 if step == 1 else 0):
                submit_short()

        turns.at_step = submit_three
        first = engine.submit(EXAMPLES[long], max_steps=6)
        assert first.result(DEADLINE).act_steps == 6
    assert [sorted(each) for each in turns.examples[:6]] == [[long], *([[short, long]] * 5)]


def test_a_long_example_ends_though_short_ones_keep_coming(network: HRM, turns: Turns) -> None:
    continue_always(network)
    long, short = 2, 0
    with contextlib.closing(Engine(network, slots=4, halting=HaltedBy.Q, threads=1)) as engine:

        def submit_at_every_other_step(step: int) -> None:
            if step % 2:
                engine.submit(EXAMPLES[short], max_steps=1)

        turns.at_step = submit_at_every_other_step
        first = engine.submit(EXAMPLES[long], max_steps=6)
        assert first.result(DEADLINE).act_steps == 6
    assert turns.examples[:11] == [*([[long], [short]] * 5), [long]]


@pytest.fixture(scope="module")
def expected() -> dict[HaltedBy, list[Prediction]]:
    return {halting: loop_predictions(halting, STEPS) for halting in HaltedBy}


@given(
    arrivals=st.lists(
        st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=3), min_size=1, max_size=16
    ),
    slots=st.integers(1, 9),
    halting=st.sampled_from(HaltedBy),
    threads=st.integers(1, 4),
)
@settings(max_examples=25, deadline=None)
def test_predictions_do_not_depend_on_what_comes_between_the_turns(
    expected: dict[HaltedBy, list[Prediction]],
    arrivals: list[list[tuple[int, bool]]],
    slots: int,
    halting: HaltedBy,
    threads: int,
) -> None:
    engine = Engine(
        reference_data.network(), slots=slots, halting=halting, max_steps=STEPS, threads=threads
    )
    begin, coming = Lane.begin, deque(arrivals)
    submitted: list[tuple[int, Predictions]] = []

    def submit_next() -> None:
        with contextlib.suppress(IndexError):  # the last ones are here
            submitted.extend(
                (row, engine.submit(EXAMPLES[row], urgent=urgent))
                for row, urgent in coming.popleft()
            )

    def begin_and_submit(self: Lane[object], chosen: Collection[object] | None = None) -> Works:
        submit_next()
        return begin(self, chosen)

    with contextlib.closing(engine), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lane, "begin", begin_and_submit)
        while coming:
            submit_next()
            wait_until(lambda: engine.statistics.busy_slots + engine.statistics.waiting == 0)
        assert len(submitted) == sum(map(len, arrivals))
        for row, future in submitted:
            assert_same(future.result(DEADLINE), expected[halting][row])
