"""The meaning of a network's logits: log-probabilities, and whether an answer is right.

Knows tensors; nothing of networks, losses or files.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hrm.model.config import IGNORE_LABEL


def log_probabilities(logits: Tensor) -> Tensor:
    """The log-probability of every token under stablemax: float (…, V) to float64 (…, V).

    Stablemax (Prieto et al., 2025, arXiv:2501.04697) replaces softmax's exponential by `x + 1` for
    x >= 0 and by `1 / (1 - x)` for x < 0. The token head is trained with it: softmax would turn the
    logits into probabilities that the head was never trained for.
    """
    wide = logits.double()
    mass = torch.where(wide < 0, 1 / (1 - wide.clamp(max=0)), wide + 1)
    return mass.log() - mass.sum(-1, keepdim=True).log()


@dataclass(frozen=True)
class Correctness:
    """Comparison of a batch's predictions with its labels."""

    accuracy: Tensor
    """float32 (B,): share of target tokens that are right."""
    solved: Tensor
    """bool (B,): whether every target token is right."""
    correct: Tensor
    """int64 (B,): target tokens that are right."""
    targets: Tensor
    """int64 (B,): target tokens."""

    @staticmethod
    def of(predictions: Tensor, labels: Tensor) -> "Correctness":
        """Compare predictions, int64 (B, S), with labels, int64 (B, S)."""
        counted = labels != IGNORE_LABEL
        targets = counted.sum(-1)
        correct = (counted & (predictions == labels)).sum(-1)
        return Correctness(correct / targets.clamp(min=1), correct == targets, correct, targets)


def q_right(q_logits: Tensor, solved: Tensor) -> Tensor:
    """Whether the Q head is right about each example: bool (B,).

    `q_halt >= 0` predicts a solved example. q_logits: float (B, 2), halt and continue; solved: bool
    (B,).
    """
    return (q_logits[:, 0] >= 0) == solved
