"""Figures of a network on a set of examples, measured with the plain loop.

Knows batches and the correctness of answers; nothing of training, checkpoints or files.
"""

from dataclasses import dataclass

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
class BothRules:
    """Figures of one set of examples, under both halting rules."""

    max_steps: RuleFigures
    q: RuleFigures

    @property
    def perfect(self) -> bool:
        """Whether both rules are perfect."""
        return self.max_steps.perfect and self.q.perfect


def measure(
    network: HRM, examples: Batch, halting: HaltedBy, lengths_accepted: Tensor | None = None
) -> RuleFigures:
    """Evaluate examples with the plain loop.

    Args:
        network: The network.
        examples: At least one example.
        halting: The halting rule.
        lengths_accepted: bool (N,): whether each example's target has an accepted length, without
            which it is not solved (default: all have, as in training).
    """
    accuracy, solved, right, steps = [], [], [], []
    for start in range(0, len(examples), MEASURE_BATCH):
        rows = slice(start, start + MEASURE_BATCH)
        batch = examples[rows]
        output = evaluate_batch(network, batch, halting=halting)
        correctness = Correctness.of(output.predictions, batch.labels)
        accuracy.append(correctness.accuracy)
        batch_solved = correctness.solved
        if lengths_accepted is not None:
            batch_solved = batch_solved & lengths_accepted[rows]
        solved.append(batch_solved)
        right.append(q_right(output.q_logits, batch_solved))
        steps.append(output.steps)
    return RuleFigures(
        examples=len(examples),
        solved=int(torch.cat(solved).sum()),
        token_accuracy=float(torch.cat(accuracy).mean()),
        q_accuracy=float(torch.cat(right).double().mean()),
        mean_act_steps=float(torch.cat(steps).double().mean()),
    )


def measure_both_rules(network: HRM, examples: Batch) -> BothRules:
    """Evaluate `examples` (at least one) under both halting rules."""
    return BothRules(
        max_steps=measure(network, examples, HaltedBy.MAX_STEPS),
        q=measure(network, examples, HaltedBy.Q),
    )
