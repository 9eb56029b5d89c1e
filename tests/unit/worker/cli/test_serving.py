"""What a worker opens: the halting rule that its options name, or that recorded figures support."""

import logging
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from schemas import HaltedBy
from worker.cli.serving import Serving
from worker.process import devices
from worker.settings import Settings

CHOSEN = "halting auto chose "


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A worker leaves torch one thread: give back the others."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def opened(
    checkpoint: str = "sqe-demo",
    *members: str,
    halting: str = "auto",
    max_steps: int | None = None,
) -> tuple[HaltedBy, int]:
    """The halting rule and the limit of steps of the evaluator that a worker opens."""
    serving = Serving(
        Settings.from_env(
            {"SQE_CHECKPOINT": checkpoint, "SQE_HALTING": halting}, slots=1, threads=1
        ),
        devices.pin("cpu", {}),
        members=members,
        weights=(),
        strategy="weighted_average",
        combiner=None,
        max_steps=max_steps,
        dtype="float32",
    )
    with closing(serving.open_evaluator("me")) as evaluator:
        return evaluator.halting, evaluator.max_steps


@pytest.mark.parametrize(
    ("checkpoints", "max_steps", "rule", "said"),
    [
        (
            ["sqe-demo"],
            None,
            HaltedBy.Q,
            (
                "q: solves 84 of 84, as under 16 fixed steps, Q head right for 84 of 84, 1.65 "
                "steps instead of 16"
            ),
        ),
        (
            ["sqe-demo-600"],
            None,
            HaltedBy.MAX_STEPS,
            "fixed steps: Q head right for 11 of 84 under q: fewer than 95 %",
        ),
        (
            ["sqe-demo"],
            8,
            HaltedBy.MAX_STEPS,
            "fixed steps: the figures were measured with at most 16 steps, not 8",
        ),
        (
            ["current", "sqe-demo", "sqe-demo-600"],
            None,
            HaltedBy.MAX_STEPS,
            "fixed steps: sqe-demo-600: Q head right for 11 of 84 under q: fewer than 95 %",
        ),
    ],
)
def test_auto_is_the_rule_that_the_recorded_figures_support(
    checkpoints: list[str],
    max_steps: int | None,
    rule: HaltedBy,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    assert opened(*checkpoints, max_steps=max_steps) == (rule, max_steps or 16)
    assert f"{CHOSEN}{said}" in caplog.messages


def test_a_rule_that_is_named_is_taken_whatever_the_figures_say(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    assert opened("sqe-demo", halting="max_steps")[0] is HaltedBy.MAX_STEPS
    assert opened("sqe-demo-600", halting="q")[0] is HaltedBy.Q
    assert CHOSEN not in caplog.text
