"""Figures of a network on a set of examples, measured with the plain loop.

Knows batches and the correctness of answers; nothing of training, checkpoints or files.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hrm.model.batch import Batch
from hrm.model.network import HRM
from hrm.model.outputs import Correctness, q_right
from hrm.model.reference_loop import evaluate_batch
from schemas import HaltedBy

MEASURE_BATCH = 128
"""Examples evaluated at once. It bounds memory; larger batches are not faster."""


@dataclass(frozen=True)
class RuleFigures:
    """Figures of inference over a set of examples, under one halting rule."""

    examples: int
    solved: int
    token_accuracy: float
    """Mean over the examples."""
    q_accuracy: float
    """Share of examples for which `q_halt >= 0` is right about whether they are solved."""
    mean_act_steps: float

    @property
    def perfect(self) -> bool:
        """Whether every example is solved and the Q head is right about all."""
        return self.solved == self.examples and self.q_accuracy == 1.0


@dataclass(frozen=True)
class ExampleFigures:
    """Figures of each of N examples, under one halting rule."""

    correctness: Correctness
    q_right: Tensor
    """bool (N,): whether `q_halt >= 0` is right about whether the example is solved."""
    act_steps: Tensor
    """int64 (N,)."""


@dataclass(frozen=True)
class BothRules:
    """Figures of one set of examples, under both halting rules."""

    max_steps: RuleFigures
    q: RuleFigures

    @property
    def perfect(self) -> bool:
        """Whether both rules are perfect."""
        return self.max_steps.perfect and self.q.perfect


def measure_batch(
    network: HRM, batch: Batch, halting: HaltedBy, lengths_accepted: Tensor | None = None
) -> ExampleFigures:
    """Evaluate each example of `batch`, all at once, with the plain loop.

    Args:
        network: The network.
        batch: N examples.
        halting: The halting rule.
        lengths_accepted: bool (N,): whether each example's target has an accepted length, without
            which it is not solved (default: all have, as in training).
    """
    output = evaluate_batch(network, batch, halting=halting)
    correctness = Correctness.of(output.predictions, batch.labels)
    if lengths_accepted is not None:
        correctness = replace(correctness, solved=correctness.solved & lengths_accepted)
    return ExampleFigures(correctness, q_right(output.q_logits, correctness.solved), output.steps)


def measure(network: HRM, examples: Batch, halting: HaltedBy) -> RuleFigures:
    """Evaluate `examples` (at least one) with the plain loop."""
    parts = [
        measure_batch(network, examples[slice(start, start + MEASURE_BATCH)], halting)
        for start in range(0, len(examples), MEASURE_BATCH)
    ]
    return RuleFigures(
        examples=len(examples),
        solved=sum(int(part.correctness.solved.sum()) for part in parts),
        token_accuracy=float(torch.cat([part.correctness.accuracy for part in parts]).mean()),
        q_accuracy=float(torch.cat([part.q_right for part in parts]).double().mean()),
        mean_act_steps=float(torch.cat([part.act_steps for part in parts]).double().mean()),
    )


def measure_both_rules(network: HRM, examples: Batch) -> BothRules:
    """Evaluate `examples` (at least one) under both halting rules."""
    return BothRules(
        max_steps=measure(network, examples, HaltedBy.MAX_STEPS),
        q=measure(network, examples, HaltedBy.Q),
    )
