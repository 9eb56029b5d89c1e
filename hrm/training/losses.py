"""The reference's losses: the token loss, and the two losses of the halting Q head.

Knows logits and labels; nothing of networks or optimisers. Every loss is a sum over the batch, as
in the reference; the trainer divides by the batch size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hrm.model.config import IGNORE_LABEL, TokenHead
from hrm.model.outputs import Correctness, log_probability_of

Q_LOSS_WEIGHT = 0.5
"""Weight of each Q loss relative to the token loss."""


def token_cross_entropy(
    logits: Tensor, labels: Tensor, head: TokenHead = TokenHead.STABLEMAX
) -> Tensor:
    """Negative log-probability of each label: (B, S), and 0 for ignored labels.

    logits: (B, S, V); labels: int64 (B, S). The dtype is that of `log_probability_of`.
    """
    counted = labels != IGNORE_LABEL
    losses = -log_probability_of(logits[counted], labels[counted], head)
    return losses.new_zeros(labels.shape).masked_scatter(counted, losses)


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
    logits: Tensor,
    q_logits: Tensor,
    labels: Tensor,
    target_q_continue: Tensor | None,
    head: TokenHead = TokenHead.STABLEMAX,
    refused: Tensor | None = None,
) -> Losses:
    """Compute the losses of one ACT step.

    Args:
        logits: (B, S, V).
        q_logits: float32 (B, 2), halt and continue.
        labels: int64 (B, S).
        target_q_continue: float32 (B,) from 0 to 1, or None in evaluation.
        head: How logits become probabilities.
        refused: bool (B,): the examples that have no answer, whose labels say so. Halting there is
            never right.
    """
    targets = (labels != IGNORE_LABEL).sum(-1, keepdim=True).clamp(min=1)
    tokens = (token_cross_entropy(logits, labels, head) / targets).sum()
    solved = Correctness.of(logits.argmax(-1), labels).solved
    if refused is not None:
        solved = solved & ~refused
    q_halt = F.binary_cross_entropy_with_logits(q_logits[:, 0], solved.float(), reduction="sum")
    q_continue = torch.zeros_like(q_halt)
    if target_q_continue is not None:
        q_continue = F.binary_cross_entropy_with_logits(
            q_logits[:, 1], target_q_continue, reduction="sum"
        )
    return Losses(tokens, q_halt, q_continue)
