"""The training loop knows the best weights and stops when nothing is left to learn."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple, cast

import pytest

from hrm.evaluation.measurement import BothRules, RuleFigures
from hrm.model.network import HRM, Levels
from hrm.training.fit import Measurement, Progress, Stopped, fit
from hrm.training.meter import Meter
from hrm.training.stop import StopRequest
from hrm.training.trainer import StepReport, Trainer, TrainingConfig
from tests.support.checkpoints import TINY

PERFECT = RuleFigures(examples=4, solved=4, token_accuracy=1.0, q_accuracy=1.0, mean_act_steps=2.0)


def figures(solved: int, q_accuracy: float = 1.0, mean_act_steps: float = 8.0) -> RuleFigures:
    return RuleFigures(4, solved, solved / 4, q_accuracy, mean_act_steps)


def measurement(step: int, max_steps: RuleFigures, q: RuleFigures | None = None) -> Measurement:
    return Measurement(step, BothRules(max_steps, max_steps if q is None else q))


def both(max_steps: RuleFigures, q: RuleFigures | None = None) -> BothRules:
    return BothRules(max_steps, max_steps if q is None else q)


class CountingTrainer:
    """A trainer that only counts its steps."""

    def __init__(self, steps: int) -> None:
        self.config = TrainingConfig(steps=steps)
        self.step_count = 0
        self.averaged_network = HRM(TINY).eval()

    def averaged_levels(self) -> Levels:
        return self.averaged_network.levels

    def step(self) -> StepReport:
        self.step_count += 1
        return StepReport(self.step_count, 1.0, 0, None, None, None, None)


class ScriptedMeter:
    """A meter with given figures by step; `whole` are those of all messages."""

    def __init__(
        self, found: Callable[[int], RuleFigures], whole: Callable[[int], RuleFigures] | None
    ) -> None:
        self._found, self._whole = found, whole
        self.whole_at: list[int] = []

    def measure(self, network: HRM, step: int, _: Levels) -> tuple[BothRules, None]:
        assert not network.training
        return both(self._found(step)), None

    def measure_all(self, network: HRM, step: int, _: Levels) -> SimpleNamespace:
        assert self._whole is not None
        assert not network.training
        self.whole_at.append(step)
        return SimpleNamespace(training=SimpleNamespace(totals=both(self._whole(step))))


class Run(NamedTuple):
    progress: Progress
    reported: list[int]
    measurements: list[Measurement]
    whole_at: list[int]


def run(
    *,
    steps: int,
    every: int,
    found: Callable[[int], RuleFigures],
    whole: Callable[[int], RuleFigures] | None = None,
    done: Sequence[Measurement] = (),
) -> Run:
    """Run the loop with `found` as the measured figures, of a sample if there are `whole`."""
    trainer, meter = CountingTrainer(steps), ScriptedMeter(found, whole)
    trainer.step_count = done[-1].step if done else 0
    progress = Progress(
        steps=steps, halt_max_steps=16, sampled=whole is not None, measurements=done
    )
    run = Run(progress, [], [], meter.whole_at)
    fit(
        cast("Trainer", trainer),
        run.progress,
        cast("Meter", meter),
        measure_every=every,
        on_step=lambda report: run.reported.append(report.step),
        on_measurement=run.measurements.append,
        stop=StopRequest(),
    )
    return run


def test_figures_are_measured_at_intervals_and_at_the_end() -> None:
    done = run(steps=7, every=3, found=lambda _: figures(1))
    assert done.reported == [1, 2, 3, 4, 5, 6, 7]
    assert [measurement.step for measurement in done.measurements] == [3, 6, 7]
    assert done.progress.measurements == done.measurements
    assert done.progress.stopped is Stopped.STEPS


def test_a_short_run_is_measured_once() -> None:
    done = run(steps=2, every=100, found=lambda _: figures(0))
    assert [measurement.step for measurement in done.measurements] == [2]
    assert done.progress.best == done.measurements[0]


def test_training_stops_when_learned_twice_in_a_row() -> None:
    good = {2, 6, 8}
    done = run(
        steps=100,
        every=2,
        found=lambda step: PERFECT if step in good else figures(3),
    )
    assert done.reported[-1] == 8
    assert done.progress.stopped is Stopped.LEARNED
    assert done.progress.best is not None
    assert done.progress.best.step == 2


def test_a_run_continues_from_its_measurements() -> None:
    before = [measurement(2, figures(3)), measurement(4, PERFECT)]
    done = run(steps=100, every=2, found=lambda _: PERFECT, done=before)
    assert done.reported == [5, 6]
    assert done.progress.stopped is Stopped.LEARNED
    assert done.progress.measurements == [*before, measurement(6, PERFECT)]
    assert done.progress.best == before[1]


def test_a_finished_run_stays_finished() -> None:
    before = [measurement(2, PERFECT), measurement(4, PERFECT)]
    done = run(steps=100, every=2, found=lambda _: PERFECT, done=before)
    assert (done.reported, done.measurements) == ([], [])


# A sample is measured.


def test_what_a_sample_calls_learned_is_measured_whole_before_training_stops() -> None:
    done = run(steps=100, every=2, found=lambda _: PERFECT, whole=lambda _: PERFECT)
    assert done.whole_at == [4]
    assert done.progress.stopped is Stopped.LEARNED
    assert done.measurements[-1].whole == both(PERFECT)
    # Of perfect measurements of a sample, the last is the best.
    assert done.progress.best == done.measurements[-1]


def test_whole_measurements_become_rarer_until_all_is_learned() -> None:
    learned_at = 25
    done = run(
        steps=100,
        every=1,
        found=lambda _: PERFECT,
        whole=lambda step: PERFECT if step >= learned_at else figures(3),
    )
    assert done.whole_at == [2, 6, 14, 30]
    assert done.progress.stopped is Stopped.LEARNED
    # A resumed run measures whole when the uninterrupted one does.
    again = run(
        steps=100,
        every=1,
        found=lambda _: PERFECT,
        whole=lambda _: PERFECT,
        done=done.measurements[:13],
    )
    assert again.whole_at == [14]


def test_a_sample_that_is_not_learned_is_never_measured_whole() -> None:
    found = [PERFECT, figures(3), figures(4, 1.0, 7.0), figures(4, 0.75), PERFECT, figures(2)]
    done = run(steps=6, every=1, found=lambda step: found[step - 1], whole=lambda _: PERFECT)
    assert done.whole_at == []
    assert done.progress.stopped is Stopped.STEPS
    assert done.progress.best == done.measurements[4]


def test_an_unmeasured_step_is_measured_first_when_a_run_continues() -> None:
    trainer, measured = CountingTrainer(6), list[int]()
    trainer.step_count = 3  # a run that was cut off before it measured this step
    fit(
        cast("Trainer", trainer),
        Progress(steps=6, halt_max_steps=16),
        cast("Meter", ScriptedMeter(lambda _: figures(1), None)),
        measure_every=3,
        on_step=lambda _: None,
        on_measurement=lambda measurement: measured.append(measurement.step),
        stop=StopRequest(),
    )
    assert measured == [3, 6]


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


def ranked(solved: int, tokens: float, q_accuracy: float = 0.5, steps: float = 8.0) -> Measurement:
    return measurement(1, RuleFigures(4, solved, tokens, q_accuracy, steps))


RANKED = [
    ranked(0, 0.1, 1.0, 1.0),
    ranked(0, 0.2, 0.25),
    ranked(0, 0.2, 0.5, 9.0),
    ranked(0, 0.2, 0.5, 8.0),
    measurement(1, figures(4), figures(1)),
    ranked(2, 0.6, 1.0, 1.0),
    ranked(2, 0.7, 0.25),
    ranked(3, 0.9, 0.25),
    ranked(3, 0.8, 0.5),
    ranked(3, 0.9, 0.5, 9.0),
    ranked(3, 0.9, 0.5, 4.0),
    ranked(4, 1.0, 0.25, 1.0),
    measurement(1, PERFECT, PERFECT),
]
"""Worst first. Solved under both rules counts most; then the share of right tokens while no more
than half is solved, and otherwise a right Q head; then fewer steps."""


def test_measurements_are_ranked_by_the_weaker_rule() -> None:
    ranks = [measurement.rank for measurement in RANKED]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(ranks)
    assert [measurement.training.perfect for measurement in RANKED] == [False] * 12 + [True]


def test_while_nothing_is_solved_patience_follows_the_tokens() -> None:
    found = [
        measurement(step, RuleFigures(8, 0, tokens, q_accuracy, 16.0))
        for step, (tokens, q_accuracy) in enumerate([(0.14, 1.0), (0.18, 1.0), (0.19, 0.9)])
    ]
    assert progress_of(*found, patience=2).stopped is None
    assert progress_of(*found).best is found[-1]
