"""The loop of a training run: take steps, measure at intervals, and decide when to stop.

Knows how weights are ranked and when training stops. Knows nothing of files, or of how a step
works, which `hrm.training.trainer` knows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from hrm.evaluation.measurement import BothRules
from hrm.training.meter import Meter
from hrm.training.stop import StopRequest
from hrm.training.trainer import StepReport, Trainer

LEARNED_IN_A_ROW = 2
"""Training stops after this many measurements in a row that find nothing left to learn. If a sample
was measured and all messages then are not learned, the next attempt takes twice as many, so that
complete measurements do not take over the run."""

QUICK_SHARE = 3 / 8
"""Share of `halt_max_steps` (6 of 16). A network whose mean halting step under `q` is later still
has something to learn."""


@dataclass(frozen=True)
class Measurement:
    """Figures of the averaged weights after `step` optimiser steps."""

    step: int
    training: BothRules
    """Figures of the training messages, or of the run's sample of them."""
    held_out: BothRules | None = None
    """Figures of examples that are never trained on. They have no influence on which weights are
    best, or the examples would no longer be held out."""
    whole: BothRules | None = None
    """Figures of all training messages, if they were measured because the sample was learned."""

    @property
    def rank(self) -> tuple[float, ...]:
        """Sort key; larger is better. Of both rules, the weaker one counts.

        Solved messages come first. If no more than half are solved, the token accuracy is next: the
        Q head is then right by refusing all. Otherwise the accuracy of the Q head is next, since a
        few more right tokens in the rest do not outweigh a Q head that is wrong about the solved.
        Fewer steps come last.
        """
        max_steps, q = self.training.max_steps, self.training.q
        solved = min(max_steps.solved, q.solved)
        tokens = min(max_steps.token_accuracy, q.token_accuracy)
        q_accuracy = min(max_steps.q_accuracy, q.q_accuracy)
        middle = (q_accuracy, tokens) if 2 * solved > q.examples else (tokens, q_accuracy)
        return (solved, *middle, -q.mean_act_steps)


class Stopped(StrEnum):
    """The reason why training ended."""

    STEPS = "steps"
    """All steps of the recipe are done."""
    LEARNED = "learned"
    """Two measurements in a row found every example solved and the Q head right, under both rules,
    and early halting under `q`; if they were of a sample, so did one of all."""
    PATIENCE = "patience"
    """The permitted number of measurements in a row brought nothing better."""


class Progress:
    """The measurements of a run: which is the best, and whether to stop.

    Args:
        steps: Optimiser steps of the recipe.
        halt_max_steps: The network's limit of ACT steps.
        patience: Stop after this many measurements without a better one; None for no such limit.
        sampled: Whether measurements are of a sample of the training messages.
        measurements: Earlier measurements, when a run is resumed.
    """

    def __init__(
        self,
        *,
        steps: int,
        halt_max_steps: int,
        patience: int | None = None,
        sampled: bool = False,
        measurements: Sequence[Measurement] = (),
    ) -> None:
        self.measurements: list[Measurement] = []
        self.best: Measurement | None = None
        self._steps = steps
        self._quick = QUICK_SHARE * halt_max_steps
        self._patience = patience
        self._sampled = sampled
        self._since_best = 0
        self._learned_in_a_row = 0
        self._learned_needed = LEARNED_IN_A_ROW
        for measurement in measurements:
            self.add(measurement)

    def add(self, measurement: Measurement) -> None:
        """Add the next measurement.

        Of equally good measurements, the first is the best. Of perfect measurements of a sample it
        is the last, since the messages that were not measured are learned until the end.
        """
        self.measurements.append(measurement)
        if self.best is None or self._better(measurement, self.best):
            self.best, self._since_best = measurement, 0
        else:
            self._since_best += 1
        learned = self._learned(measurement.training)
        self._learned_in_a_row = self._learned_in_a_row + 1 if learned else 0
        if measurement.whole is not None and not self._learned(measurement.whole):
            self._learned_in_a_row, self._learned_needed = 0, 2 * self._learned_needed

    def lose_best(self, step: int) -> None:
        """Go on from the weights of `step` if those of the best measurement are gone."""
        measured = self.measured_step == step
        self.best = self.measurements[-1] if self.measurements and measured else None
        self._since_best = 0

    def whole_wanted(self, measurement: Measurement) -> bool:
        """Whether to measure all messages before `measurement`, of a sample, is added."""
        return (
            self._sampled
            and self._learned(measurement.training)
            and self._learned_in_a_row + 1 >= self._learned_needed
        )

    def _better(self, new: Measurement, best: Measurement) -> bool:
        if self._sampled and new.training.perfect and best.training.perfect:
            return True
        return new.rank > best.rank

    def _learned(self, figures: BothRules) -> bool:
        return figures.perfect and figures.q.mean_act_steps <= self._quick

    @property
    def measured_step(self) -> int:
        """The step of the last measurement, 0 before the first."""
        return self.measurements[-1].step if self.measurements else 0

    @property
    def improved(self) -> bool:
        """Whether the last measurement is the best."""
        return self.best is not None and self._since_best == 0

    @property
    def stopped(self) -> Stopped | None:
        """The reason why training is over, or None while it continues."""
        if self._learned_in_a_row >= self._learned_needed:
            return Stopped.LEARNED
        if self.measured_step >= self._steps:
            return Stopped.STEPS
        if self._patience is not None and self._since_best >= self._patience:
            return Stopped.PATIENCE
        return None


def fit(
    trainer: Trainer,
    progress: Progress,
    meter: Meter,
    *,
    measure_every: int,
    on_step: Callable[[StepReport], None],
    on_measurement: Callable[[Measurement], None],
    stop: StopRequest,
) -> None:
    """Train until `progress` says to stop.

    Args:
        trainer: Takes the steps.
        progress: Collects the measurements and decides when to stop.
        meter: Measures the averaged weights.
        measure_every: Steps between two measurements. The last step is always measured.
        on_step: Called after every step.
        on_measurement: Called after `progress` has added a measurement.
        stop: Asks to stop earlier.

    Raises:
        DivergedError: The loss or the gradient is not finite.
        StopAskedError: `stop` was asked. The trainer is as after its last step, which may have to
            be measured: the next call with the same trainer does it.
    """
    while progress.stopped is None:
        stop.check()
        step = trainer.step_count
        due = step % measure_every == 0 or step >= trainer.config.steps
        if not due or step <= progress.measured_step:
            on_step(trainer.step())
            continue
        averaged = trainer.averaged_network, step, trainer.averaged_levels()
        with stop.at_once():
            measurement = Measurement(step, *meter.measure(*averaged))
            if progress.whole_wanted(measurement):
                whole = meter.measure_all(*averaged).training.totals
                measurement = replace(measurement, whole=whole)
        progress.add(measurement)
        on_measurement(measurement)
