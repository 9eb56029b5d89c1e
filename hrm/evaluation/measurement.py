"""Figures of a network on a set of messages, measured with the plain loop.

Knows messages as batches of their parts, and the correctness of answers; nothing of training,
checkpoints or files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrm.model.batch import Batch, Messages
from hrm.model.network import HRM, Levels
from hrm.model.outputs import Correctness
from hrm.model.reference_loop import LoopOutput, evaluate_batch, evaluate_rules
from schemas import HaltedBy

MEASURE_BATCH = 128
"""Parts evaluated at once. It bounds memory; larger batches are not faster."""


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
class ExampleFigures:
    """Figures of each of N messages, under one halting rule.

    A message is solved if all its parts are; its `q_halt` is the smallest and its ACT steps are the
    most of all parts.
    """

    correctness: Correctness
    q_right: Tensor
    """bool (N,): whether `q_halt >= 0` is right about whether the message is solved."""
    act_steps: Tensor
    """int64 (N,)."""


@dataclass(frozen=True)
class BothRules:
    """Figures of one set of examples, under both halting rules."""

    max_steps: RuleFigures
    q: RuleFigures

    @property
    def perfect(self) -> bool:
        """Whether both rules are perfect."""
        return self.max_steps.perfect and self.q.perfect


@dataclass(frozen=True)
class EachUnderBothRules:
    """Figures of each of N messages, under both halting rules."""

    max_steps: ExampleFigures
    q: ExampleFigures

    @property
    def totals(self) -> BothRules:
        """Figures of the set of all messages (at least one)."""
        return BothRules(max_steps=_totals(self.max_steps), q=_totals(self.q))


def measure_each(
    network: HRM,
    messages: Messages,
    halting: HaltedBy,
    lengths_accepted: Tensor | None = None,
    *,
    levels: Levels | None = None,
) -> ExampleFigures:
    """Evaluate each of `messages` with the plain loop.

    Args:
        network: The network.
        messages: N messages.
        halting: The halting rule.
        lengths_accepted: bool (N,): whether each message's target has an accepted length, without
            which it is not solved (default: all have, as in training).
        levels: Another form of the network's levels to compute with (default: its own).
    """
    parts = [
        evaluate_batch(network, batch, halting=halting, levels=levels)
        for batch in _batches(messages)
    ]
    return _by_messages(parts, messages, lengths_accepted)


def measure_both_rules(
    network: HRM, messages: Messages, *, levels: Levels | None = None
) -> EachUnderBothRules:
    """Evaluate each of `messages` under both halting rules, with one run of the plain loop.

    `levels` is another form of the network's levels to compute with.
    """
    rules = (HaltedBy.MAX_STEPS, HaltedBy.Q)
    parts = [evaluate_rules(network, batch, rules, levels=levels) for batch in _batches(messages)]
    max_steps, q = zip(*parts, strict=True)
    return EachUnderBothRules(
        max_steps=_by_messages(max_steps, messages), q=_by_messages(q, messages)
    )


def _batches(messages: Messages) -> Iterator[Batch]:
    for start in range(0, len(messages.parts), MEASURE_BATCH):
        yield messages.parts[slice(start, start + MEASURE_BATCH)]


def _by_messages(
    parts: Sequence[LoopOutput], messages: Messages, lengths_accepted: Tensor | None = None
) -> ExampleFigures:
    rows = Correctness.of(torch.cat([each.predictions for each in parts]), messages.parts.labels)
    correct = _by_message(rows.correct, messages, "sum")
    targets = _by_message(rows.targets, messages, "sum")
    solved = correct == targets
    if lengths_accepted is not None:
        solved &= lengths_accepted
    q_halt = _by_message(torch.cat([each.q_logits[:, 0] for each in parts]), messages, "amin")
    return ExampleFigures(
        Correctness(correct / targets.clamp(min=1), solved, correct, targets),
        (q_halt >= 0) == solved,
        _by_message(torch.cat([each.steps for each in parts]), messages, "amax"),
    )


def _by_message(rows: Tensor, messages: Messages, reduction: str) -> Tensor:
    """One number for each message, from those of its parts: (B,) to (N,)."""
    reduced = rows.new_zeros(len(messages))
    return reduced.scatter_reduce(0, messages.message, rows, reduction, include_self=False)


def measure(network: HRM, messages: Messages, halting: HaltedBy) -> RuleFigures:
    """Evaluate `messages` (at least one) with the plain loop."""
    return _totals(measure_each(network, messages, halting))


def _totals(figures: ExampleFigures) -> RuleFigures:
    return RuleFigures(
        examples=len(figures.act_steps),
        solved=int(figures.correctness.solved.sum()),
        token_accuracy=float(figures.correctness.accuracy.mean()),
        q_accuracy=float(figures.q_right.double().mean()),
        mean_act_steps=float(figures.act_steps.double().mean()),
    )
