"""`sqe-hrm train` says how long it will take, how far it is, and what will not be enough."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from hrm.evaluation.measurement import BothRules, RuleFigures
from hrm.training.fit import Measurement
from hrm.training.run import TrainingRun
from hrm.training.trainer import StepReport
from worker.cli.tables.training import TrainingDisplay, duration, plan_lines


def run(
    *,
    steps: int,
    examples: int,
    messages: int | None = None,
    done: int = 0,
    noise: int = 0,
    sharing: int = 0,
    init_from: str | None = None,
) -> TrainingRun:
    messages = examples if messages is None else messages
    fields: dict[str, Any] = {
        "trainer": SimpleNamespace(
            config=SimpleNamespace(steps=steps, new_draws=4),
            step_count=done,
            examples=range(examples),
            batch_size=min(96, examples),
            network=SimpleNamespace(config=SimpleNamespace(halt_max_steps=16)),
            device=torch.device("cpu"),
        ),
        "training": range(messages),
        "options": SimpleNamespace(prompt_noise=noise, init_from=init_from, seed=3),
        "about": {"prompts": messages, "prompts_sharing_rows": sharing},
        "seconds": 125.0,
    }
    return cast("TrainingRun", SimpleNamespace(**fields))


def report(step: int) -> StepReport:
    return StepReport(step, 1.0, 0, None, None, None, None)


def measurement(step: int) -> Measurement:
    figures = RuleFigures(54, 0, 0.1, 1.0, 16.0)
    return Measurement(step, BothRules(figures, figures))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_time_is_estimated_once_the_speed_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    bar = Progress(console=Console(width=200), disable=True)
    display = TrainingDisplay(bar, run(steps=1600, examples=54), clock)
    for step in range(1, 41):
        # The first step takes longer, and is left out of the estimate.
        clock.now += 30.0 if step == 1 else 2.0
        display.on_step(report(step))
    (line,) = capsys.readouterr().out.splitlines()
    threads = torch.get_num_threads()
    plural = "s" if threads > 1 else ""
    assert line == f"about 52 min for the other 1,589 steps on {threads} thread{plural}"
    display.on_measurement(measurement(40))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "step    40  loss 1.000  2 min 5 s, 52 min left  max_steps: 0/54 solved, "
    )


def test_at_the_end_nothing_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    bar = Progress(console=Console(width=200), disable=True)
    display = TrainingDisplay(bar, run(steps=3, examples=54, done=1), clock)
    for step in (2, 3):
        clock.now += 60.0
        display.on_step(report(step))
    display.on_measurement(measurement(3))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("step     3  loss 1.000  2 min 5 s  max_steps")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (599, "9 min 59 s"),
        (600, "10 min"),
        (3599, "59 min"),
        (6010, "1 h 40 min"),
        (86_400 * 2 + 3 * 3600 + 59, "2 d 3 h"),
    ],
)
def test_times_are_said_in_two_units_at_most(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_run_of_enough_steps_is_not_warned_about() -> None:
    assert plan_lines(run(steps=1600, examples=54)) == [
        "1,600 steps, 100 episodes for each message, seed 3"
    ]
    (line,) = plan_lines(run(steps=1600, examples=54, messages=33))
    assert line == "1,600 steps, 100 episodes for each part of a message, seed 3"


def test_too_few_steps_are_warned_about_with_enough() -> None:
    _, warning = plan_lines(run(steps=1000, examples=500))
    assert warning == (
        "warning: 12.0 episodes are few, these messages need 18 or more: give --steps 3000"
    )
    assert len(plan_lines(run(steps=1600, examples=54, noise=3))) == 2
    assert len(plan_lines(run(steps=4000, examples=54, noise=3))) == 1
    # A run that goes on cannot be changed.
    assert len(plan_lines(run(steps=1000, examples=500, done=10))) == 1


def test_shared_puzzle_rows_are_warned_about_with_a_size_that_is_enough() -> None:
    def warned(sharing: int, init_from: str | None = None) -> list[str]:
        return plan_lines(run(steps=8400, examples=500, sharing=sharing, init_from=init_from))[1:]

    assert warned(100) == []
    assert warned(195) == [
        "warning: 39 % of the prompts share a puzzle row with another: give --puzzle-space 5000"
    ]
    (further,) = warned(195, "base")
    assert further.endswith("with another: start without --init-from to have more rows")
