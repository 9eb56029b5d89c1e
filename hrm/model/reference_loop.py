"""The plain evaluation loop: static batches, each step for the whole batch, as in the reference.

The engine's answers and its speed are measured against this loop. It also evaluates small sets at
once, for example during training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrm.model.batch import Batch
from hrm.model.network import HRM, Levels
from schemas import HaltedBy


@dataclass(frozen=True)
class LoopOutput:
    """The network's outputs for each example, taken at the step at which the example halted."""

    predictions: Tensor
    """int64 (B, S)."""
    q_logits: Tensor
    """float32 (B, 2): halt, continue."""
    steps: Tensor
    """int64 (B,)."""
    q_flips: Tensor
    """int64 (B,): how often the sign of q_halt - q_continue changed."""


class _Answers:
    """The outputs of a batch under one rule, filled in as its examples halt."""

    def __init__(self, batch: Batch, halting: HaltedBy) -> None:
        self.halting = halting
        self.halted = torch.zeros(len(batch), dtype=torch.bool, device=batch.inputs.device)
        self.predictions = torch.zeros_like(batch.inputs)
        self.q_logits = torch.zeros(len(batch), 2, device=batch.inputs.device)
        self.steps = torch.zeros_like(batch.puzzle_ids)
        self.q_flips = torch.zeros_like(batch.puzzle_ids)

    def halting_now(self, prefers_halt: Tensor, *, last: bool) -> Tensor:
        """The examples that halt at this step: bool (B,)."""
        due = prefers_halt if self.halting is HaltedBy.Q else torch.zeros_like(self.halted)
        return ~self.halted & (due | last)

    def take(self, halts: Tensor, step: int, tokens: Tensor, q_logits: Tensor) -> None:
        """Keep the outputs of the examples that halt at `step`."""
        self.predictions = torch.where(halts.unsqueeze(-1), tokens, self.predictions)
        self.q_logits = torch.where(halts.unsqueeze(-1), q_logits, self.q_logits)
        self.steps = torch.where(halts, step, self.steps)
        self.halted |= halts


def evaluate_batch(
    network: HRM,
    batch: Batch,
    *,
    halting: HaltedBy,
    max_steps: int | None = None,
    levels: Levels | None = None,
) -> LoopOutput:
    """Run ACT steps until every example of `batch` has halted.

    An example's answer is taken at the step at which it halts. Under the rule `q` that is the first
    step with `q_halt > q_continue`, and `max_steps` (default: the configuration's) at the latest.
    `levels` is another form of the network's levels to compute with.
    """
    (output,) = evaluate_rules(network, batch, [halting], max_steps=max_steps, levels=levels)
    return output


@torch.inference_mode()
def evaluate_rules(
    network: HRM,
    batch: Batch,
    rules: Sequence[HaltedBy],
    *,
    max_steps: int | None = None,
    levels: Levels | None = None,
) -> tuple[LoopOutput, ...]:
    """The output of `evaluate_batch` under each of `rules`, from the ACT steps of the slowest.

    The steps under `q` are the first of those under `max_steps`, so both cost as much as
    `max_steps` alone.
    """
    limit = max_steps or network.config.halt_max_steps
    x = network.embed(batch.inputs, network.puzzle_embedding(batch.puzzle_ids))
    state = network.initial_state(len(batch))
    under = [_Answers(batch, halting) for halting in rules]
    preferred_halt = None
    for step in range(1, limit + 1):
        state = network.step(state, x, levels)
        q_logits = network.q_logits(state.z_H)
        prefers_halt = q_logits[:, 0] > q_logits[:, 1]
        tokens = None
        for answers in under:
            if preferred_halt is not None:
                answers.q_flips += (prefers_halt != preferred_halt) & ~answers.halted
            halts = answers.halting_now(prefers_halt, last=step == limit)
            if halts.any():
                if tokens is None:
                    tokens = network.token_logits(state.z_H).argmax(-1)
                answers.take(halts, step, tokens, q_logits)
        preferred_halt = prefers_halt
        if all(answers.halted.all() for answers in under):
            break
    return tuple(LoopOutput(a.predictions, a.q_logits, a.steps, a.q_flips) for a in under)
