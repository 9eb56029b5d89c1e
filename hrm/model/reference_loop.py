"""The plain evaluation loop: static batches, each step for the whole batch, as in the reference.

The engine's answers and its speed are measured against this loop. It also evaluates small sets at
once, for example during training.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hrm.model.batch import Batch
from hrm.model.network import HRM
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


@torch.inference_mode()
def evaluate_batch(
    network: HRM, batch: Batch, *, halting: HaltedBy, max_steps: int | None = None
) -> LoopOutput:
    """Run ACT steps until every example of `batch` has halted.

    An example's answer is taken at the step at which it halts. Under the rule `q` that is the first
    step with `q_halt > q_continue`, and `max_steps` (default: the configuration's) at the latest.
    """
    limit = max_steps or network.config.halt_max_steps
    x = network.embed(batch.inputs, network.puzzle_embedding(batch.puzzle_ids))
    state = network.initial_state(len(batch))
    halted = torch.zeros(len(batch), dtype=torch.bool, device=batch.inputs.device)
    predictions = torch.zeros_like(batch.inputs)
    answer_q = torch.zeros(len(batch), 2, device=batch.inputs.device)
    steps, q_flips = torch.zeros_like(batch.puzzle_ids), torch.zeros_like(batch.puzzle_ids)
    preferred_halt = None
    for step in range(1, limit + 1):
        state = network.step(state, x)
        q_logits = network.q_logits(state.z_H)
        prefers_halt = q_logits[:, 0] > q_logits[:, 1]
        if preferred_halt is not None:
            q_flips += (prefers_halt != preferred_halt) & ~halted
        preferred_halt = prefers_halt
        due = prefers_halt if halting is HaltedBy.Q else torch.zeros_like(halted)
        halts = ~halted & (due | (step == limit))
        if not halts.any():
            continue
        tokens = network.token_logits(state.z_H).argmax(-1)
        predictions = torch.where(halts.unsqueeze(-1), tokens, predictions)
        answer_q = torch.where(halts.unsqueeze(-1), q_logits, answer_q)
        steps = torch.where(halts, step, steps)
        halted |= halts
        if halted.all():
            break
    return LoopOutput(predictions, answer_q, steps, q_flips)
