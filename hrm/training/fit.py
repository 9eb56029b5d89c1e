"""The loop of a training run: take steps, measure at intervals, and decide when to stop.

Knows how weights are ranked and when training stops. Knows nothing of files, or of how a step
works, which `hrm.training.trainer` knows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hrm.evaluation.measurement import BothRules, measure_both_rules
from hrm.model.batch import Messages
from hrm.training.trainer import StepReport, Trainer

LEARNED_IN_A_ROW = 2
"""Training stops after this many measurements in a row that find nothing left to learn."""

QUICK_SHARE = 3 / 8
"""Share of `halt_max_steps` (6 of 16). A network whose mean halting step under `q` is later still
has something to learn."""


@dataclass(frozen=True)
class Measurement:
    """Figures of the averaged weights after `step` optimiser steps."""

    step: int
    training: BothRules
    held_out: BothRules | None = None
    """Figures of examples that are never trained on. They have no influence on which weights are
    best, or the examples would no longer be held out."""

    @property
    def rank(self) -> tuple[float, ...]:
        """Sort key; larger is better.

        Solved examples under the weaker rule count first, then the accuracy of the Q head, then
        fewer steps.
        """
        max_steps, q = self.training.max_steps, self.training.q
        return (
            min(max_steps.solved, q.solved),
            min(max_steps.q_accuracy, q.q_accuracy),
            -q.mean_act_steps,
        )


class Stopped(StrEnum):
    """The reason why training ended."""

    STEPS = "steps"
    """All steps of the recipe are done."""
    LEARNED = "learned"
    """Two measurements in a row found every example solved and the Q head right, under both rules,
    and early halting under `q`."""
    PATIENCE = "patience"
    """The permitted number of measurements in a row brought nothing better."""


class Progress:
    """The measurements of a run: which is the best, and whether to stop.

    Args:
        steps: Optimiser steps of the recipe.
        halt_max_steps: The network's limit of ACT steps.
        patience: Stop after this many measurements without a better one; None for no such limit.
        measurements: Earlier measurements, when a run is resumed.
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
        """Add the next measurement. Of equally good measurements, the first is the best."""
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
        """The reason why training is over, or None while it continues."""
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
    training: Messages,
    held_out: Messages | None = None,
    on_step: Callable[[StepReport], None],
    on_measurement: Callable[[Measurement], None],
) -> None:
    """Train until `progress` says to stop.

    Args:
        trainer: Takes the steps.
        progress: Collects the measurements and decides when to stop.
        measure_every: Steps between two measurements. The last step is always measured.
        training: The messages whose parts are the trainer's examples.
        held_out: Messages to measure that are not trained on.
        on_step: Called after every step.
        on_measurement: Called after `progress` has added a measurement.

    Raises:
        DivergedError: The loss or the gradient is not finite.
    """
    while progress.stopped is None:
        report = trainer.step()
        on_step(report)
        if report.step % measure_every and report.step < trainer.config.steps:
            continue
        network = trainer.averaged_network
        measurement = Measurement(
            report.step,
            training=measure_both_rules(network, training),
            held_out=None if held_out is None else measure_both_rules(network, held_out),
        )
        progress.add(measurement)
        on_measurement(measurement)
