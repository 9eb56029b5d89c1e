"""Runs a whole training: steps, measures every so often, keeps the best weights.

Knows what makes one set of weights better than another, and when to stop; how a step is done is
`hrm.training`, and files are someone else's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hrm.batch import Batch
from hrm.losses import Correctness
from hrm.network import HRM
from hrm.reference_loop import evaluate_batch
from hrm.training import StepReport, Trainer
from schemas import HaltedBy

MEASURE_BATCH = 128
"""Examples evaluated at once: bounds memory, and larger batches are not faster."""

PERFECT_IN_A_ROW = 2
"""Training stops when so many measurements in a row found nothing left to learn."""


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
    def perfect(self) -> bool:
        """Everything solved, and the Q head knows it."""
        return self.solved == self.examples and self.q_accuracy == 1.0


@dataclass(frozen=True)
class Measurement:
    """The averaged weights after `step` optimiser steps, under both halting rules."""

    step: int
    max_steps: Figures
    q: Figures

    @property
    def rank(self) -> tuple[float, ...]:
        """More is better: solved under both rules, then a right Q head, then fewer steps."""
        return (
            min(self.max_steps.solved, self.q.solved),
            min(self.max_steps.q_accuracy, self.q.q_accuracy),
            -self.q.mean_act_steps,
        )

    @property
    def perfect(self) -> bool:
        """Perfect under both rules."""
        return self.max_steps.perfect and self.q.perfect


@dataclass(frozen=True)
class FitResult:
    """The best weights of a run, on the CPU, and what was measured with them."""

    state: dict[str, Tensor]
    best: Measurement
    last_step: int


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
    *,
    measure_every: int,
    on_step: Callable[[StepReport], None],
    on_measurement: Callable[[Measurement], None],
) -> FitResult:
    """Train to the configured number of steps, or until nothing is left to learn.

    Measures the training examples every `measure_every` steps and at the end.
    """
    best: FitResult | None = None
    in_a_row = 0
    while trainer.step_count < trainer.config.steps and in_a_row < PERFECT_IN_A_ROW:
        report = trainer.step()
        on_step(report)
        if report.step % measure_every and report.step < trainer.config.steps:
            continue
        network = trainer.averaged_network
        measurement = Measurement(
            report.step,
            max_steps=measure(network, trainer.examples, HaltedBy.MAX_STEPS),
            q=measure(network, trainer.examples, HaltedBy.Q),
        )
        on_measurement(measurement)
        in_a_row = in_a_row + 1 if measurement.perfect else 0
        if best is None or measurement.rank > best.best.rank:
            state = {key: value.cpu().clone() for key, value in network.state_dict().items()}
            best = FitResult(state, measurement, report.step)
    assert best is not None  # noqa: S101 - the last step is always measured
    return FitResult(best.state, best.best, trainer.step_count)
