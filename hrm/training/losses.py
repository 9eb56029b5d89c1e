"""The reference's losses: the token loss, and the two losses of the halting Q head.

Knows logits and labels; nothing of networks or optimisers. Every loss is a sum over the batch, as
in the reference; the trainer divides by the batch size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hrm.model.config import IGNORE_LABEL
from hrm.model.outputs import Correctness, log_probabilities

Q_LOSS_WEIGHT = 0.5
"""Weight of each Q loss relative to the token loss."""


def stablemax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-probability of each label: float64 (B, S), and 0 for ignored labels.

    logits: (B, S, V); labels: int64 (B, S). In float64, small gradients survive when training has
    almost converged.
    """
    counted = labels != IGNORE_LABEL
    chosen = log_probabilities(logits).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(counted, -chosen, 0.0)


@dataclass(frozen=True)
class Losses:
    """The losses of one ACT step, summed over the batch."""

    tokens: Tensor
    """Mean token loss of every example."""
    q_halt: Tensor
    """Cross entropy of `q_halt` against whether halting now would be right."""
    q_continue: Tensor
    """Cross entropy of `q_continue` against the value of the next step; 0 if no next step was
    computed."""

    @property
    def total(self) -> Tensor:
        """The loss that training minimises."""
        return self.tokens + Q_LOSS_WEIGHT * (self.q_halt + self.q_continue)


def act_losses(
    logits: Tensor, q_logits: Tensor, labels: Tensor, target_q_continue: Tensor | None
) -> Losses:
    """Compute the losses of one ACT step.

    Args:
        logits: (B, S, V).
        q_logits: float32 (B, 2), halt and continue.
        labels: int64 (B, S).
        target_q_continue: float32 (B,) from 0 to 1, or None in evaluation.
    """
    targets = (labels != IGNORE_LABEL).sum(-1, keepdim=True).clamp(min=1)
    tokens = (stablemax_cross_entropy(logits, labels) / targets).sum()
    solved = Correctness.of(logits.argmax(-1), labels).solved
    q_halt = F.binary_cross_entropy_with_logits(q_logits[:, 0], solved.float(), reduction="sum")
    q_continue = torch.zeros_like(q_halt)
    if target_q_continue is not None:
        q_continue = F.binary_cross_entropy_with_logits(
            q_logits[:, 1], target_q_continue, reduction="sum"
        )
    return Losses(tokens, q_halt, q_continue)
