"""Runs a whole training: steps, measures every so often, says when to stop.

Knows what makes one set of weights better than another, and the rules for stopping; how a step is
done is `hrm.training.trainer`, and files are someone else's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hrm.evaluation.measurement import BothRules, measure_both_rules
from hrm.model.batch import Batch
from hrm.training.trainer import StepReport, Trainer

LEARNED_IN_A_ROW = 2
"""Training stops when so many measurements in a row found nothing left to learn."""

QUICK_SHARE = 3 / 8
"""Of `halt_max_steps` (6 of 16): a network that halts later under `q` has more to learn."""


@dataclass(frozen=True)
class Measurement:
    """The averaged weights after `step` optimiser steps."""

    step: int
    training: BothRules
    held_out: BothRules | None = None
    """Of examples that are never trained on. It has no part in which weights are best, or it
    would no longer be held out."""

    @property
    def rank(self) -> tuple[float, ...]:
        """More is better: solved under both rules, then a right Q head, then fewer steps."""
        max_steps, q = self.training.max_steps, self.training.q
        return (
            min(max_steps.solved, q.solved),
            min(max_steps.q_accuracy, q.q_accuracy),
            -q.mean_act_steps,
        )


class Stopped(StrEnum):
    """Why a training is over."""

    STEPS = "steps"
    """All steps of the recipe are done."""
    LEARNED = "learned"
    """Twice in a row everything was solved and the Q head right, under both rules, and examples
    halted early under `q`."""
    PATIENCE = "patience"
    """So many measurements in a row were no better than the best."""


class Progress:
    """What the measurements of a run come to: which is best, and whether to stop.

    steps: of the recipe; patience: measurements without a better one after which to stop, or None
    for no such limit; measurements: those of the part of the run that is done already.
    """

    def __init__(
        self,
        *,
        steps: int,
        halt_max_steps: int,
        patience: int | None = None,
        measurements: Sequence[Measurement] = (),
    ) -> None:
        self.measurements: list[Measurement] = []
        self.best: Measurement | None = None
        self._steps = steps
        self._quick = QUICK_SHARE * halt_max_steps
        self._patience = patience
        self._since_best = 0
        self._learned_in_a_row = 0
        for measurement in measurements:
            self.add(measurement)

    def add(self, measurement: Measurement) -> None:
        """Take the next measurement into account. Among equals, the first is the best."""
        self.measurements.append(measurement)
        if self.best is None or measurement.rank > self.best.rank:
            self.best, self._since_best = measurement, 0
        else:
            self._since_best += 1
        training = measurement.training
        learned = training.perfect and training.q.mean_act_steps <= self._quick
        self._learned_in_a_row = self._learned_in_a_row + 1 if learned else 0

    @property
    def improved(self) -> bool:
        """Whether the last measurement is the best."""
        return self.best is not None and self._since_best == 0

    @property
    def stopped(self) -> Stopped | None:
        """Why training is over, or None while it goes on."""
        if self._learned_in_a_row >= LEARNED_IN_A_ROW:
            return Stopped.LEARNED
        if self.measurements and self.measurements[-1].step >= self._steps:
            return Stopped.STEPS
        if self._patience is not None and self._since_best >= self._patience:
            return Stopped.PATIENCE
        return None


def fit(
    trainer: Trainer,
    progress: Progress,
    *,
    measure_every: int,
    held_out: Batch | None = None,
    on_step: Callable[[StepReport], None],
    on_measurement: Callable[[Measurement], None],
) -> None:
    """Train until `progress` says that it is over.

    Measures every `measure_every` steps and after the last one, and calls `on_measurement` once
    `progress` has it. Raises `DivergedError`.
    """
    while progress.stopped is None:
        report = trainer.step()
        on_step(report)
        if report.step % measure_every and report.step < trainer.config.steps:
            continue
        network = trainer.averaged_network
        measurement = Measurement(
            report.step,
            training=measure_both_rules(network, trainer.examples),
            held_out=None if held_out is None else measure_both_rules(network, held_out),
        )
        progress.add(measurement)
        on_measurement(measurement)
