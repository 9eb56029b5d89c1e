"""The training loop knows the best weights and stops when nothing is left to learn."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import pytest

from hrm.evaluation import measurement as measurement_module
from hrm.evaluation.measurement import BothRules, RuleFigures
from hrm.model.batch import Messages
from hrm.model.network import HRM
from hrm.training.fit import Measurement, Progress, Stopped, fit
from hrm.training.trainer import StepReport, Trainer, TrainingConfig
from schemas import HaltedBy
from tests.support import reference as reference_data
from tests.support.checkpoints import TINY

PERFECT = RuleFigures(examples=4, solved=4, token_accuracy=1.0, q_accuracy=1.0, mean_act_steps=2.0)


def figures(solved: int, q_accuracy: float = 1.0, mean_act_steps: float = 8.0) -> RuleFigures:
    return RuleFigures(4, solved, solved / 4, q_accuracy, mean_act_steps)


def measurement(step: int, max_steps: RuleFigures, q: RuleFigures | None = None) -> Measurement:
    return Measurement(step, BothRules(max_steps, max_steps if q is None else q))


class CountingTrainer:
    """A trainer that only counts its steps."""

    def __init__(self, steps: int) -> None:
        self.config = TrainingConfig(steps=steps)
        self.examples = reference_data.batch()
        self.step_count = 0
        self.averaged_network = HRM(TINY).eval()

    def step(self) -> StepReport:
        self.step_count += 1
        return StepReport(self.step_count, 1.0, 0, None, None, None, None)


class Run(NamedTuple):
    progress: Progress
    reported: list[int]
    measurements: list[Measurement]


def run(
    monkeypatch: pytest.MonkeyPatch,
    *,
    steps: int,
    every: int,
    found: Callable[[int, HaltedBy, Messages], RuleFigures],
    done: Sequence[Measurement] = (),
    held_out: Messages | None = None,
) -> Run:
    """Run the loop with `found` as the measured figures."""
    trainer = CountingTrainer(steps)
    trainer.step_count = done[-1].step if done else 0

    def scripted(network: HRM, examples: Messages, halting: HaltedBy) -> RuleFigures:
        assert network is trainer.averaged_network
        return found(trainer.step_count, halting, examples)

    monkeypatch.setattr(measurement_module, "measure", scripted)
    run = Run(Progress(steps=steps, halt_max_steps=16, measurements=done), [], [])
    fit(
        cast("Trainer", trainer),
        run.progress,
        measure_every=every,
        training=Messages.whole(trainer.examples),
        held_out=held_out,
        on_step=lambda report: run.reported.append(report.step),
        on_measurement=run.measurements.append,
    )
    return run


def test_figures_are_measured_at_intervals_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(monkeypatch, steps=7, every=3, found=lambda *_: figures(1))
    assert done.reported == [1, 2, 3, 4, 5, 6, 7]
    assert [measurement.step for measurement in done.measurements] == [3, 6, 7]
    assert done.progress.measurements == done.measurements
    assert done.progress.stopped is Stopped.STEPS


def test_a_short_run_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(monkeypatch, steps=2, every=100, found=lambda *_: figures(0))
    assert [measurement.step for measurement in done.measurements] == [2]
    assert done.progress.best == done.measurements[0]


def test_each_rule_and_each_set_is_measured_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = Messages.whole(reference_data.batch()[:2])
    done = run(
        monkeypatch,
        steps=1,
        every=1,
        held_out=held_out,
        found=lambda _, halting, examples: figures(
            (1 if halting is HaltedBy.Q else 2) + (2 if examples is held_out else 0)
        ),
    )
    assert done.measurements == [
        Measurement(
            1,
            training=BothRules(max_steps=figures(2), q=figures(1)),
            held_out=BothRules(max_steps=figures(4), q=figures(3)),
        )
    ]


def test_training_stops_when_learned_twice_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    good = {2, 6, 8}
    done = run(
        monkeypatch,
        steps=100,
        every=2,
        found=lambda step, *_: PERFECT if step in good else figures(3),
    )
    assert done.reported[-1] == 8
    assert done.progress.stopped is Stopped.LEARNED
    assert done.progress.best is not None
    assert done.progress.best.step == 2


def test_a_run_continues_from_its_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [measurement(2, figures(3)), measurement(4, PERFECT)]
    done = run(monkeypatch, steps=100, every=2, found=lambda *_: PERFECT, done=before)
    assert done.reported == [5, 6]
    assert done.progress.stopped is Stopped.LEARNED
    assert done.progress.measurements == [*before, measurement(6, PERFECT)]
    assert done.progress.best == before[1]


def test_a_finished_run_stays_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [measurement(2, PERFECT), measurement(4, PERFECT)]
    done = run(monkeypatch, steps=100, every=2, found=lambda *_: PERFECT, done=before)
    assert (done.reported, done.measurements) == ([], [])


# Progress.


def progress_of(*found: Measurement, patience: int | None = None) -> Progress:
    return Progress(steps=100, halt_max_steps=16, patience=patience, measurements=found)


def test_of_equally_good_measurements_the_first_is_the_best() -> None:
    found = [measurement(step, figures(solved)) for step, solved in enumerate([1, 3, 2, 3, 0])]
    improved = [progress_of(*found[: count + 1]).improved for count in range(5)]
    assert improved == [True, True, False, False, False]
    assert progress_of(*found).best is found[1]


@pytest.mark.parametrize(
    ("lacking", "stopped"),
    [
        (figures(4, 1.0, 6.0), Stopped.LEARNED),
        (figures(4, 1.0, 6.01), None),
        (figures(4, 0.75, 1.0), None),
        (figures(3, 1.0, 1.0), None),
    ],
)
def test_learned_means_solved_with_a_right_q_head_and_early_halting(
    lacking: RuleFigures, stopped: Stopped | None
) -> None:
    late = figures(4, 1.0, 16.0)
    assert progress_of(*[measurement(1, late, lacking)] * 2).stopped is stopped
    assert progress_of(measurement(1, late, lacking)).stopped is None
    # Under max_steps, halting late does not matter.
    weaker = replace(lacking, mean_act_steps=16.0)
    expected = Stopped.LEARNED if weaker.perfect else None
    assert progress_of(*[measurement(1, weaker, PERFECT)] * 2).stopped is expected


def test_patience_counts_measurements_since_the_best() -> None:
    found = [measurement(step, figures(solved)) for step, solved in enumerate([1, 0, 2, 2, 1, 0])]
    stopped = [progress_of(*found[:count], patience=2).stopped for count in range(7)]
    assert stopped == [None, None, None, None, None, Stopped.PATIENCE, Stopped.PATIENCE]
    assert progress_of(*found).stopped is None


def test_held_out_examples_do_not_influence_the_best() -> None:
    rules = BothRules(figures(2), figures(2))
    found = [Measurement(1, rules, BothRules(figures(s), figures(s))) for s in (0, 4)]
    assert found[0].rank == found[1].rank
    assert progress_of(*found).best is found[0]


RANKED = [
    measurement(1, figures(4), figures(1)),
    measurement(1, figures(2, 0.25), figures(2, 0.25)),
    measurement(1, figures(2, 0.5), figures(3, 0.75, 16)),
    measurement(1, figures(2, 0.5, 16), figures(3, 0.75, 4)),
    measurement(1, figures(4, 0.25), figures(4, 0.25)),
    measurement(1, PERFECT, PERFECT),
]
"""Worst first. Solved under both rules counts most, then a right Q head, then fewer steps."""


def test_measurements_are_ranked_by_the_weaker_rule() -> None:
    ranks = [measurement.rank for measurement in RANKED]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(ranks)
    assert [measurement.training.perfect for measurement in RANKED] == [False] * 5 + [True]
