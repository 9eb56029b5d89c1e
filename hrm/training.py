"""Trains a network on accepted examples by the reference's procedure: ACT with carried state.

Knows networks, losses and optimisers; nothing of files, text or the command line.

Every row of the batch carries an example through several ACT steps, one optimiser step each. Once
its example has halted, the row takes the next one and starts from the initial state. A row halts
where `q_halt > q_continue`, or at `halt_max_steps`; exploration sometimes makes it go on for a
random number of steps. The Q head learns whether halting now is right, and what the next step is
worth. Weights are trained by AdamW, the puzzle table's rows by sign descent.

What this recipe adds to the reference's: gradients are clipped, the weights that are kept are a
moving average, and half of the rows explore, because a network that halts at once otherwise
forgets the later steps that the rule `max_steps` runs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hrm.batch import Batch
from hrm.losses import Correctness, act_losses
from hrm.network import HRM, State


class TrainingConfig(BaseModel):
    """The recipe. The defaults are those the shipped checkpoint was trained with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=2000, ge=1, description="Optimiser steps.")
    batch_size: int = Field(default=96, ge=1, description="At most the number of examples.")
    lr: float = Field(default=1e-3, gt=0, description="AdamW, at its peak.")
    lr_warmup_steps: int = Field(default=50, ge=0)
    lr_min_ratio: float = Field(default=0.0, ge=0, le=1, description="Of lr, at the last step.")
    weight_decay: float = Field(default=1.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to it.")
    ema_decay: float = Field(default=0.99, ge=0, lt=1, description="Of the averaged weights.")
    puzzle_emb_lr: float = Field(default=1e-2, ge=0, description="Sign descent, at its peak.")
    puzzle_emb_weight_decay: float = Field(default=0.1, ge=0)
    seed: int = 0


@dataclass(frozen=True)
class StepReport:
    """Figures of one optimiser step; those of examples are means over the rows that halted."""

    step: int
    loss: float
    halted: int
    accuracy: float
    solved: float
    q_accuracy: float
    act_steps: float


@dataclass
class _Carry:
    """What each row of the batch is working on."""

    batch: Batch
    state: State
    steps: Tensor
    """int64 (B,): ACT steps done on the current example."""
    halted: Tensor
    """bool (B,): takes a new example next."""


class Trainer:
    """Runs the recipe over `examples` (all on one device), one optimiser step a call."""

    def __init__(self, network: HRM, examples: Batch, config: TrainingConfig) -> None:
        self.network = network.train()
        self.examples = examples
        self.config = config
        self.step_count = 0
        self.batch_size = min(config.batch_size, len(examples))
        self.device = examples.inputs.device
        self._random = torch.Generator().manual_seed(config.seed)
        self._order = self._shuffled_rows()
        averaging = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
        self._averaged = AveragedModel(network, multi_avg_fn=averaging, use_buffers=True)
        self._optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        first = examples[: self.batch_size]
        self._carry = _Carry(
            batch=first,
            state=network.initial_state(self.batch_size),
            steps=torch.zeros_like(first.puzzle_ids),
            halted=torch.ones_like(first.puzzle_ids, dtype=torch.bool),
        )

    @property
    def averaged_network(self) -> HRM:
        """The moving average of the weights: what is evaluated and kept. In evaluation mode."""
        network = self._averaged.module
        assert isinstance(network, HRM)  # noqa: S101 - a copy of what it was made of
        return network.eval()

    def step(self) -> StepReport:
        """One ACT step forward on every row, and one step of both optimisers."""
        carry = self._refill(self._carry)
        network = self.network
        puzzle_rows = network.puzzle_embedding(carry.batch.puzzle_ids)
        if puzzle_rows is not None:
            puzzle_rows = puzzle_rows.detach().float().requires_grad_()
        x = network.embed(carry.batch.inputs, puzzle_rows)
        state = network.step(carry.state, x)
        logits, q_logits = network.token_logits(state.z_H), network.q_logits(state.z_H)
        carry = _Carry(
            carry.batch, State(*(z.detach() for z in state)), carry.steps + 1, carry.halted
        )
        last = carry.steps >= network.config.halt_max_steps
        carry.halted = self._halts(carry.steps, q_logits.detach(), last)
        losses = act_losses(
            logits, q_logits, carry.batch.labels, self._continue_target(carry.state, x, last)
        )
        total = losses.total / self.batch_size
        torch.autograd.backward(total)
        self._update(carry.batch.puzzle_ids, None if puzzle_rows is None else puzzle_rows.grad)
        self._carry = carry
        self.step_count += 1
        return self._report(float(total.detach()), logits, q_logits, carry)

    def _refill(self, carry: _Carry) -> _Carry:
        """Give every halted row a new example and the initial state."""
        rows = carry.halted
        initial = self.network.initial_state(self.batch_size)
        wide = rows.view(-1, 1, 1)
        return _Carry(
            batch=carry.batch.replace(rows, self._next_examples(int(rows.sum()))),
            state=State(
                torch.where(wide, initial.z_H, carry.state.z_H),
                torch.where(wide, initial.z_L, carry.state.z_L),
            ),
            steps=carry.steps.masked_fill(rows, 0),
            halted=rows,
        )

    def _halts(self, steps: Tensor, q_logits: Tensor, last: Tensor) -> Tensor:
        config = self.network.config
        explores = self._uniform() < config.halt_exploration_prob
        least = (2 + self._uniform() * (config.halt_max_steps - 1)).long()
        prefers_halt = q_logits[:, 0] > q_logits[:, 1]
        return last | (prefers_halt & (steps >= torch.where(explores, least, 0)))

    @torch.no_grad()
    def _continue_target(self, state: State, x: Tensor, last: Tensor) -> Tensor:
        """The value of going on, float32 (B,): the next step's better choice, as in Q-learning."""
        q_next = self.network.q_logits(self.network.step(state, x).z_H)
        return torch.where(last, q_next[:, 0], q_next.amax(-1)).sigmoid()

    def _update(self, puzzle_ids: Tensor, puzzle_grad: Tensor | None) -> None:
        config = self.config
        scale = self._schedule()
        for group in self._optimizer.param_groups:
            group["lr"] = config.lr * scale
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if puzzle_grad is not None:
            sign_descent_(
                self.network.puzzle_emb.weights,
                puzzle_ids,
                puzzle_grad,
                lr=config.puzzle_emb_lr * scale,
                weight_decay=config.puzzle_emb_weight_decay,
            )
        self._averaged.update_parameters(self.network)

    def _schedule(self) -> float:
        """Share of the peak learning rates: linear warm-up, then linear decay."""
        config, step = self.config, self.step_count + 1
        if step <= config.lr_warmup_steps:
            return step / config.lr_warmup_steps
        left = (config.steps - step) / max(1, config.steps - config.lr_warmup_steps)
        return config.lr_min_ratio + (1 - config.lr_min_ratio) * max(0.0, left)

    def _report(self, loss: float, logits: Tensor, q_logits: Tensor, carry: _Carry) -> StepReport:
        correctness = Correctness.of(logits.argmax(-1), carry.batch.labels)
        q_right = (q_logits[:, 0] >= 0) == correctness.solved
        figures = torch.stack(
            (correctness.accuracy, correctness.solved.float(), q_right.float(), carry.steps.float())
        )
        halted = int(carry.halted.sum())
        means = figures[:, carry.halted].mean(-1).tolist() if halted else [math.nan] * 4
        return StepReport(self.step_count, loss, halted, *means)

    def _uniform(self) -> Tensor:
        # Drawn on the CPU, so that a seed means the same on every device.
        return torch.rand(self.batch_size, generator=self._random).to(self.device)

    def _next_examples(self, count: int) -> Batch:
        rows = torch.tensor([next(self._order) for _ in range(count)], dtype=torch.int64)
        return self.examples[rows.to(self.device)]

    def _shuffled_rows(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(len(self.examples), generator=self._random).tolist()


@torch.no_grad()
def sign_descent_(
    table: Tensor, rows: Tensor, gradient: Tensor, *, lr: float, weight_decay: float
) -> None:
    """Move each row of `table` that occurs in `rows` by `lr` against its summed gradient's sign.

    table: (N, D); rows: int64 (B,), with repeats; gradient: (B, D). For a gradient as sparse as
    a table row's, this is what Adam would do. Weight decay is decoupled.
    """
    seen, position = torch.unique(rows, return_inverse=True)
    summed = gradient.new_zeros(len(seen), gradient.shape[1]).index_add_(0, position, gradient)
    moved = table[seen].float() * (1 - lr * weight_decay) - lr * summed.sign()
    table[seen] = moved.to(table.dtype)
