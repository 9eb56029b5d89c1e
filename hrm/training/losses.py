"""The reference's losses: token loss, and the two of the halting Q head.

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
"""Of each Q loss beside the token loss."""


def stablemax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-probability of each label: float64 (B, S), 0 where the label is ignored.

    logits: (B, S, V); labels: int64 (B, S). float64 keeps small gradients alive once training has
    almost converged.
    """
    counted = labels != IGNORE_LABEL
    chosen = log_probabilities(logits).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(counted, -chosen, 0.0)


@dataclass(frozen=True)
class Losses:
    """Sums over the batch."""

    tokens: Tensor
    """Each example's mean token loss."""
    q_halt: Tensor
    """Whether halting now would be right, against `q_halt`."""
    q_continue: Tensor
    """The next step's value, against `q_continue`; 0 where no next step was computed."""

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.tokens + Q_LOSS_WEIGHT * (self.q_halt + self.q_continue)


def act_losses(
    logits: Tensor, q_logits: Tensor, labels: Tensor, target_q_continue: Tensor | None
) -> Losses:
    """The losses of one ACT step.

    logits: (B, S, V); q_logits: float32 (B, 2), halt and continue; labels: int64 (B, S);
    target_q_continue: float32 (B,) in 0..1, or None in evaluation.
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
