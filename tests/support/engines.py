"""Engines over the reference's network: the expected predictions, and control of its steps."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from hrm.inference.engine import Engine
from hrm.inference.prediction import Prediction
from hrm.inference.threads import RowWork
from hrm.model.network import HRM, Levels, State
from hrm.model.reference_loop import evaluate_batch
from schemas import HaltedBy
from tests.support import reference as reference_data

DEADLINE = 30
"""Seconds after which a test gives up waiting."""

Predictions = Future[Prediction]

Works = list[tuple[RowWork, int]]
"""The result of `Lane.begin`."""


@contextmanager
def engine_of(
    network: HRM,
    *,
    slots: int,
    halting: HaltedBy = HaltedBy.MAX_STEPS,
    max_steps: int | None = None,
    threads: int = 1,
) -> Iterator[Engine]:
    engine = Engine(network, slots=slots, halting=halting, max_steps=max_steps, threads=threads)
    try:
        yield engine
    finally:
        engine.close()


def loop_predictions(halting: HaltedBy, max_steps: int | None = None) -> list[Prediction]:
    output = evaluate_batch(
        reference_data.network(), reference_data.batch(), halting=halting, max_steps=max_steps
    )
    return [
        Prediction(
            tokens=tuple(tokens),
            act_steps=steps,
            halted_by=(
                HaltedBy.Q
                if halting is HaltedBy.Q and q_logits[0] > q_logits[1]
                else HaltedBy.MAX_STEPS
            ),
            q_halt=q_logits[0],
            q_continue=q_logits[1],
            q_flips=q_flips,
        )
        for tokens, steps, q_logits, q_flips in zip(
            output.predictions.tolist(),
            output.steps.tolist(),
            output.q_logits.tolist(),
            output.q_flips.tolist(),
            strict=True,
        )
    ]


def assert_same(given: Prediction, wanted: Prediction) -> None:
    assert given.tokens == wanted.tokens
    assert (given.act_steps, given.halted_by, given.q_flips) == (
        wanted.act_steps,
        wanted.halted_by,
        wanted.q_flips,
    )
    assert given.q_halt == pytest.approx(wanted.q_halt, abs=1e-4)
    assert given.q_continue == pytest.approx(wanted.q_continue, abs=1e-4)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Gate:
    """Holds a network at the beginning of its next step, and counts the rows of every step."""

    def __init__(self, network: HRM) -> None:
        self.network = network
        self.reached, self.opened = threading.Event(), threading.Event()
        self.rows: list[int] = []
        self.before_step: Callable[[], None] = lambda: None
        self._step = network.step
        network.step = self.step  # type: ignore[method-assign]

    def step(
        self, state: State, x: Tensor, levels: Levels | None = None, positions: int | None = None
    ) -> State:
        self.reached.set()
        assert self.opened.wait(DEADLINE)
        self.rows.append(len(x))
        self.before_step()
        return self._step(state, x, levels, positions)


class Turns:
    """Notes which examples each step of `network` computes, and calls `at_step` at each."""

    def __init__(self, network: HRM) -> None:
        self.examples: list[list[int]] = []
        self.at_step: Callable[[int], object] = lambda _: None
        self._step = network.step
        batch = reference_data.batch()
        with torch.inference_mode():
            self._x = network.embed(batch.inputs, network.puzzle_embedding(batch.puzzle_ids))
        network.step = self.step  # type: ignore[method-assign]

    def step(
        self, state: State, x: Tensor, levels: Levels | None = None, positions: int | None = None
    ) -> State:
        is_same = (x.unsqueeze(1) == self._x).all((2, 3))
        self.examples.append(is_same.int().argmax(1).tolist())
        self.at_step(len(self.examples))
        return self._step(state, x, levels, positions)


def continue_always(network: HRM) -> None:
    """Set the Q head so that only limits halt examples."""
    assert network.q_head.bias is not None
    with torch.no_grad():
        network.q_head.weight.zero_()
        network.q_head.bias.copy_(torch.tensor([-1.0, 1.0]))
