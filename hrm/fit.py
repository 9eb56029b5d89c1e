"""Runs a whole training: steps, measures every so often, says when to stop.

Knows what makes one set of weights better than another, and the rules for stopping; how a step is
done is `hrm.training`, and files are someone else's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch

from hrm.batch import Batch
from hrm.losses import Correctness
from hrm.network import HRM
from hrm.reference_loop import evaluate_batch
from hrm.statistics import Share
from hrm.training import StepReport, Trainer
from schemas import HaltedBy

MEASURE_BATCH = 128
"""Examples evaluated at once: bounds memory, and larger batches are not faster."""

LEARNED_IN_A_ROW = 2
"""Training stops when so many measurements in a row found nothing left to learn."""

QUICK_SHARE = 3 / 8
"""Of `halt_max_steps` (6 of 16): a network that halts later under `q` has more to learn."""


@dataclass(frozen=True)
class Figures:
    """What inference over a set of examples found under one halting rule."""

    examples: int
    solved: int
    token_accuracy: float
    """Mean over the examples."""
    q_accuracy: float
    """Share of examples where `q_halt >= 0` says rightly whether they are solved."""
    mean_act_steps: float

    @property
    def solve_rate(self) -> Share:
        """With its 95 % Wilson interval."""
        return Share.measured(self.solved, self.examples)

    @property
    def perfect(self) -> bool:
        """Everything solved, and the Q head knows it."""
        return self.solved == self.examples and self.q_accuracy == 1.0


@dataclass(frozen=True)
class BothRules:
    """Of one set of examples, under both halting rules."""

    max_steps: Figures
    q: Figures

    @property
    def perfect(self) -> bool:
        """Perfect under both rules."""
        return self.max_steps.perfect and self.q.perfect


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


def measure(network: HRM, examples: Batch, halting: HaltedBy) -> Figures:
    """Evaluate `examples` (at least one) with the plain loop."""
    accuracy, solved, q_right, steps = [], [], [], []
    for start in range(0, len(examples), MEASURE_BATCH):
        batch = examples[slice(start, start + MEASURE_BATCH)]
        output = evaluate_batch(network, batch, halting=halting)
        correctness = Correctness.of(output.predictions, batch.labels)
        accuracy.append(correctness.accuracy)
        solved.append(correctness.solved)
        q_right.append((output.q_logits[:, 0] >= 0) == correctness.solved)
        steps.append(output.steps)
    return Figures(
        examples=len(examples),
        solved=int(torch.cat(solved).sum()),
        token_accuracy=float(torch.cat(accuracy).mean()),
        q_accuracy=float(torch.cat(q_right).double().mean()),
        mean_act_steps=float(torch.cat(steps).double().mean()),
    )


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
            training=_under_both(network, trainer.examples),
            held_out=None if held_out is None else _under_both(network, held_out),
        )
        progress.add(measurement)
        on_measurement(measurement)


def _under_both(network: HRM, examples: Batch) -> BothRules:
    return BothRules(
        max_steps=measure(network, examples, HaltedBy.MAX_STEPS),
        q=measure(network, examples, HaltedBy.Q),
    )
