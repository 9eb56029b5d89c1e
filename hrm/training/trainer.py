"""Training of a network on accepted examples by the reference's procedure: ACT with carried state.

Knows networks, losses and optimisers; nothing of files, text or the command line.

Every row of the batch carries an example through several ACT steps, with one optimiser step for
each. When the example has halted, the row takes the next one and starts from the initial state. A
row halts when `q_halt > q_continue`, or at `halt_max_steps`; exploration sometimes makes it
continue for a random number of steps. The Q head learns whether halting now is right, and what the
next step is worth. AdamW trains the weights, and sign descent trains the rows of the puzzle table.

This recipe adds three things to the reference's: gradients are clipped, a moving average of the
weights is kept, and half of the rows explore. Without exploration, a network that halts at once
forgets the later steps, which the rule `max_steps` still runs.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from random import Random

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hrm.kernels.training import TrainedLevels
from hrm.model.batch import Batch
from hrm.model.network import HRM, Levels, State
from hrm.model.outputs import Correctness, q_right
from hrm.training.losses import act_losses
from hrm.training.noise import PromptNoise
from schemas import SQEHRMError

MAX_SEED = 2**63
"""Seeds are below this, as torch wants them."""


logger = logging.getLogger(__name__)


class DivergedError(SQEHRMError):
    """The loss or the gradient became NaN or infinite."""


class Recipe(BaseModel):
    """The training recipe, apart from its length."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batch_size: int = Field(
        default=96, ge=1, description="Examples per step; at most the number of training examples."
    )
    lr: float = Field(
        default=1e-3,
        gt=0,
        description="Peak learning rate of AdamW; 4e-4 unless given, if accepted pairs are "
        "replayed.",
    )
    lr_warmup_steps: int = Field(
        default=50, ge=0, description="Steps until the learning rates reach their peak."
    )
    lr_min_ratio: float = Field(
        default=0.0, ge=0, le=1, description="Final learning rate as a fraction of the peak."
    )
    weight_decay: float = Field(default=1.0, ge=0, description="Weight decay of AdamW.")
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="Norm that gradients are clipped to."
    )
    ema_decay: float = Field(default=0.99, ge=0, lt=1, description="Decay of the averaged weights.")
    puzzle_emb_lr: float = Field(
        default=1e-2, ge=0, description="Peak learning rate of the puzzle table's sign descent."
    )
    puzzle_emb_weight_decay: float = Field(
        default=0.1, ge=0, description="Weight decay of the puzzle table."
    )
    prompt_noise: int = Field(
        default=0,
        ge=0,
        le=10,
        description="Most words of a prompt that are changed, anew each time the prompt is drawn; "
        "0 trains on the exact prompts alone.",
    )
    foreign_share: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="With prompt noise: share of draws that give a puzzle a prompt which was never "
        "accepted for it, so that the network learns to refuse it.",
    )
    full_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the rows of a batch that run each example for all steps; 1 unless "
        "given, if accepted pairs are replayed. Others halt when the Q head says so, and then "
        "hardly ever reach the late steps.",
    )
    replayed_emb_lr: float = Field(
        default=0.1,
        ge=0,
        description="With replayed pairs: learning rate of their rows of the puzzle table, as a "
        "fraction of the others'.",
    )
    new_draws: int = Field(
        default=4,
        ge=1,
        description="With replayed pairs: how often each new message is drawn while each of these "
        "is drawn once.",
    )
    seed: int = Field(default=0, ge=0, lt=MAX_SEED, description="Seed for all random numbers.")


class TrainingConfig(Recipe):
    """A training recipe. `hrm/README.md` has the measurements made with the defaults."""

    steps: int = Field(default=1000, ge=1, description="Largest number of optimiser steps.")


@dataclass(frozen=True)
class StepReport:
    """Figures of one optimiser step.

    `accuracy`, `solved`, `q_accuracy` and `act_steps` are means over the rows that halted, and
    None if no row did.
    """

    step: int
    loss: float
    halted: int
    accuracy: float | None
    solved: float | None
    q_accuracy: float | None
    act_steps: float | None


@dataclass
class _Carry:
    """The current work of every row of the batch."""

    batch: Batch
    state: State
    steps: Tensor
    """int64 (B,): ACT steps done on the current example."""
    halted: Tensor
    """bool (B,): whether the row takes a new example next."""


class Trainer:
    """Trains `network` on `examples` by the recipe `config`, one optimiser step per call of `step`.

    Args:
        network: The network.
        examples: All examples, on one device.
        config: The recipe.
        noise: What draws noise on the prompts of `examples`, if the recipe asks for any.
        replayed: The number of examples that the network was trained on before. They are the first,
            and are drawn less often than the others.
    """

    def __init__(
        self,
        network: HRM,
        examples: Batch,
        config: TrainingConfig,
        noise: PromptNoise | None = None,
        replayed: int = 0,
    ) -> None:
        self.network = network.train()
        self.examples = examples
        self.config = config
        self._noise = noise
        self.step_count = 0
        self.batch_size = min(config.batch_size, len(examples))
        self.device = examples.inputs.device
        self._random = torch.Generator().manual_seed(config.seed)
        self._order: list[int] = []
        new = torch.arange(replayed, len(examples))
        repeats = config.new_draws if replayed else 1
        self._pool = torch.cat((torch.arange(replayed), new.repeat(repeats)))
        self._replayed_rows = examples.puzzle_ids[:replayed]
        averaging = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
        self._levels = TrainedLevels(network)
        logger.info("training kernels: %s", self._levels.form)
        self._averaged_levels: TrainedLevels | None = None
        self._averaged = AveragedModel(network, multi_avg_fn=averaging, use_buffers=True)
        # The averaged weights are measured in the dtype in which a checkpoint is loaded.
        self.averaged_network.forward_dtype = torch.float32
        self._optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        first = examples[: self.batch_size]
        rows = torch.arange(self.batch_size, device=self.device)
        self._full = rows < round(config.full_share * self.batch_size)
        count = max(1, int(self._full.sum()))
        self._carry = _Carry(
            batch=first,
            state=network.initial_state(self.batch_size),
            # The first episodes of full rows end one after the other: together, all of them would
            # be at the same step for ever.
            steps=torch.where(self._full, rows * network.config.halt_max_steps // count, 0),
            halted=~self._full,
        )

    @property
    def averaged_network(self) -> HRM:
        """A network with the moving average of the weights, which is measured and kept.

        It is in evaluation mode and in float32 throughout, whatever the forward dtype of training.
        """
        network = self._averaged.module
        assert isinstance(network, HRM)  # noqa: S101 - a copy of the network
        return network.eval()

    def averaged_levels(self) -> Levels:
        """The levels of `averaged_network` in their fastest form; they hold until the next step."""
        if self._averaged_levels is None:  # a trainer that measures nothing has no need of them
            self._averaged_levels = TrainedLevels(self.averaged_network)
        self._averaged_levels.refresh()
        return self._averaged_levels.levels

    def step(self) -> StepReport:
        """Run one ACT step on every row and one step of both optimisers.

        If the loss or the gradient is not finite, raises `DivergedError` and leaves the weights as
        they were.
        """
        carry = self._refill(self._carry)
        network = self.network
        puzzle_rows = network.puzzle_embedding(carry.batch.puzzle_ids)
        if puzzle_rows is not None:
            puzzle_rows = puzzle_rows.detach().float().requires_grad_()
        x = network.embed(carry.batch.inputs, puzzle_rows)
        state = network.step(carry.state, x, self._levels.levels)
        logits, q_logits = network.token_logits(state.z_H), network.q_logits(state.z_H)
        carry = _Carry(
            carry.batch, State(*(z.detach() for z in state)), carry.steps + 1, carry.halted
        )
        last = carry.steps >= network.config.halt_max_steps
        refused = None if self._noise is None else self._noise.refused(carry.batch.labels)
        carry.halted = self._halts(carry.steps, q_logits.detach(), last, refused)
        losses = act_losses(
            logits,
            q_logits,
            carry.batch.labels,
            self._continue_target(carry.state, x, last),
            network.config.token_head,
            refused,
        )
        total = losses.total / self.batch_size
        torch.autograd.backward(total)
        loss = float(total.detach())
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), self.config.max_grad_norm)
        if not isfinite(loss + float(norm)):
            raise DivergedError(
                f"diverged at step {self.step_count + 1} (loss {loss:.3g}, gradient norm "
                f"{float(norm):.3g}): lower lr ({self.config.lr:g}) or puzzle_emb_lr "
                f"({self.config.puzzle_emb_lr:g})"
            )
        self._update(carry.batch.puzzle_ids, None if puzzle_rows is None else puzzle_rows.grad)
        self._carry = carry
        self.step_count += 1
        return self._report(loss, logits, q_logits, carry)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything the next steps depend on, beside `averaged_network` and the constructor."""
        carry = self._carry
        state = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self._optimizer.state[parameter].items():
                state[f"adamw.{key}.{name}"] = value
        return state | {
            "carry.inputs": carry.batch.inputs,
            "carry.labels": carry.batch.labels,
            "carry.puzzle_ids": carry.batch.puzzle_ids,
            "carry.z_H": carry.state.z_H,
            "carry.z_L": carry.state.z_L,
            "carry.steps": carry.steps,
            "carry.halted": carry.halted,
            "step_count": torch.tensor(self.step_count),
            "order": torch.tensor(self._order, dtype=torch.int64),
            "random": self._random.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor], averaged: Mapping[str, Tensor]) -> None:
        """Continue where another trainer of this network, these examples and this recipe stopped.

        On the CPU and with the same number of threads, the following steps equal the other
        trainer's to the last bit.

        Args:
            state: The `state_dict()` of the other trainer.
            averaged: The `state_dict()` of its `averaged_network`.
        """
        self.network.load_state_dict(_below("network.", state))
        self._levels.refresh()
        self.averaged_network.load_state_dict(averaged)
        moments = {key: _below(f"adamw.{key}.", state) for key in ("step", "exp_avg", "exp_avg_sq")}
        self._optimizer.load_state_dict(
            {
                "state": {
                    index: {key: values[name] for key, values in moments.items()}
                    for index, (name, _) in enumerate(self.network.named_parameters())
                },
                "param_groups": self._optimizer.state_dict()["param_groups"],
            }
        )
        carry = {key: value.to(self.device) for key, value in _below("carry.", state).items()}
        self._carry = _Carry(
            Batch(carry["inputs"], carry["labels"], carry["puzzle_ids"]),
            State(carry["z_H"], carry["z_L"]),
            carry["steps"],
            carry["halted"],
        )
        self.step_count = int(state["step_count"])
        self._averaged.n_averaged.fill_(self.step_count)
        self._order = state["order"].tolist()
        self._random.set_state(state["random"])

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

    def _halts(
        self, steps: Tensor, q_logits: Tensor, last: Tensor, refused: Tensor | None
    ) -> Tensor:
        config = self.network.config
        explores = self._uniform() < config.halt_exploration_prob
        least = (2 + self._uniform() * (config.halt_max_steps - 1)).long()
        prefers_halt = q_logits[:, 0] > q_logits[:, 1]
        least_to_halt = torch.where(explores, least, 0)
        halts = last | (prefers_halt & (steps >= least_to_halt) & ~self._full)
        # Halting is never right there, so that these would take all steps, and most of the time.
        return halts if refused is None else halts | (refused & (steps >= least))

    @torch.no_grad()
    def _continue_target(self, state: State, x: Tensor, last: Tensor) -> Tensor:
        """The value of continuing, as in Q-learning: the better choice at the next step.

        float32 (B,).
        """
        # The Q head reads the first position alone.
        state = self.network.step(state, x, self._levels.levels, positions=1)
        q_next = self.network.q_logits(state.z_H)
        return torch.where(last, q_next[:, 0], q_next.amax(-1)).sigmoid()

    def _update(self, puzzle_ids: Tensor, puzzle_grad: Tensor | None) -> None:
        config = self.config
        scale = self._schedule()
        for group in self._optimizer.param_groups:
            group["lr"] = config.lr * scale
        self._optimizer.step()
        self._optimizer.zero_grad()
        if puzzle_grad is not None:
            lr: Tensor | float = config.puzzle_emb_lr * scale
            if len(self._replayed_rows):
                # Sign descent moves a row as far for a tiny gradient as for a large one, so that
                # those of pairs which the network holds already would wander off.
                replayed = torch.isin(puzzle_ids, self._replayed_rows)
                lr *= torch.where(replayed, config.replayed_emb_lr, 1.0)
            sign_descent_(
                self.network.puzzle_emb.weights,
                puzzle_ids,
                puzzle_grad,
                lr=lr,
                weight_decay=config.puzzle_emb_weight_decay,
            )
        self._levels.refresh()
        self._averaged.update_parameters(self.network)

    def _schedule(self) -> float:
        """The current share of the peak learning rates: linear warm-up, then linear decay."""
        config, step = self.config, self.step_count + 1
        if step <= config.lr_warmup_steps:
            return step / config.lr_warmup_steps
        left = (config.steps - step) / max(1, config.steps - config.lr_warmup_steps)
        return config.lr_min_ratio + (1 - config.lr_min_ratio) * max(0.0, left)

    def _report(self, loss: float, logits: Tensor, q_logits: Tensor, carry: _Carry) -> StepReport:
        correctness = Correctness.of(logits.argmax(-1), carry.batch.labels)
        right = q_right(q_logits, correctness.solved)
        figures = torch.stack(
            (correctness.accuracy, correctness.solved.float(), right.float(), carry.steps.float())
        )
        halted = int(carry.halted.sum())
        means = figures[:, carry.halted].mean(-1).tolist() if halted else [None] * 4
        return StepReport(self.step_count, loss, halted, *means)

    def _uniform(self) -> Tensor:
        # Drawn on the CPU, so that a seed gives the same numbers on every device.
        return torch.rand(self.batch_size, generator=self._random).to(self.device)

    def _next_examples(self, count: int) -> Batch:
        """The next examples: the pool comes once, in random order, before it comes again."""
        while len(self._order) < count:
            order = torch.randperm(len(self._pool), generator=self._random)
            self._order += self._pool[order].tolist()
        rows, self._order = self._order[:count], self._order[count:]
        drawn = self.examples[torch.tensor(rows, dtype=torch.int64, device=self.device)]
        if self._noise is None:
            return drawn
        seed = torch.randint(2**62, (), generator=self._random)
        return self._noise.draw(rows, drawn, Random(int(seed)))  # noqa: S311 - no secret


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


@torch.no_grad()
def sign_descent_(
    table: Tensor, rows: Tensor, gradient: Tensor, *, lr: Tensor | float, weight_decay: float
) -> None:
    """Move each row of `table` that occurs in `rows` by `lr` against the sign of its gradient.

    Adam would do the same with gradients as sparse as those of the table.

    Args:
        table: (N, D), changed in place.
        rows: int64 (B,), may contain a row several times; its gradients are then summed.
        gradient: (B, D).
        lr: The distance that every number moves; or (B,), the same for equal rows.
        weight_decay: Decoupled weight decay of the rows that move.
    """
    seen, position = torch.unique(rows, return_inverse=True)
    summed = gradient.new_zeros(len(seen), gradient.shape[1]).index_add_(0, position, gradient)
    if isinstance(lr, Tensor):
        lr = lr.new_zeros(len(seen)).index_copy_(0, position, lr).unsqueeze(-1)
    moved = table[seen].float() * (1 - lr * weight_decay) - lr * summed.sign()
    table[seen] = moved.to(table.dtype)
