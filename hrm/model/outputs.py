"""The meaning of a network's logits: log-probabilities, and whether an answer is right.

Knows tensors; nothing of networks, losses or files.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hrm.model.config import IGNORE_LABEL, TokenHead


def log_probabilities(logits: Tensor, head: TokenHead = TokenHead.STABLEMAX) -> Tensor:
    """The log-probability of every token: float (…, V) to float64 (…, V).

    Stablemax (Prieto et al., 2025, arXiv:2501.04697) replaces softmax's exponential by `x + 1` for
    x >= 0 and by `1 / (1 - x)` for x < 0. A head that was trained with one of them gives logits
    that the other would turn into probabilities it was never trained for.
    """
    if head is TokenHead.SOFTMAX:
        return logits.double().log_softmax(-1)
    mass = _stablemax_mass(logits)
    return mass.log() - mass.sum(-1, keepdim=True).log()


def log_probability_of(logits: Tensor, tokens: Tensor, head: TokenHead) -> Tensor:
    """The log-probability of one token each: logits (N, V) and tokens int64 (N,) to (N,).

    The same as `log_probabilities` at `tokens`, without computing all the others. float64 for
    stablemax, in which small gradients survive when training has almost converged; float32 for
    softmax, whose gradients then vanish anyway.
    """
    if head is TokenHead.SOFTMAX:
        return -F.cross_entropy(logits.float(), tokens, reduction="none")
    mass = _stablemax_mass(logits)
    chosen = mass.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen.log() - mass.sum(-1).log()


def _stablemax_mass(logits: Tensor) -> Tensor:
    wide = logits.double()
    return torch.where(wide < 0, 1 / (1 - wide.clamp(max=0)), wide + 1)


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
