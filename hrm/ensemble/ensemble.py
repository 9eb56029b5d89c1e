"""Several checkpoints as one model: its rules of membership, its name and digest, its opening.

Knows checkpoints and joins the parts of an ensemble; how their predictions are joined is
`hrm.ensemble.join`, how their logits are combined `hrm.ensemble.combiners`.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial, reduce
from pathlib import Path

import torch
from torch import Tensor

from hrm.checkpoint import (
    Checkpoint,
    TrainingRecord,
    open_checkpoint,
)
from hrm.checkpoint.figures import Evidence, joint_evidence
from hrm.checkpoint.record import Accepted
from hrm.data.config import Task
from hrm.data.texts import text_hash
from hrm.ensemble.combiners import Strategy, vote, weighted_average
from hrm.ensemble.join import Combine, join_by
from hrm.ensemble.stacking import EnsembleError, Stacking
from hrm.inference.config import Inference
from hrm.inference.prediction import Predictor
from hrm.model.config import TokenHead

MAX_NAME_LENGTH = 80
"""Longest name of an ensemble, in characters: it is a metric label and a column of tables."""

_MIN_MEMBERS = 2


def _in_short(tasks: Sequence[Task]) -> str:
    """Tell lists of tasks apart, in a few characters of an error line."""
    return f"{len(tasks)} ({text_hash(str(tasks))[:8]})" if tasks else "none"


SHARED_FIELDS: dict[str, Callable[[Checkpoint], object]] = {
    "token_head": lambda member: member.config.token_head.value,
    "vocab_size": lambda member: member.config.vocab_size,
    "seq_len": lambda member: member.config.seq_len,
    "conversion": lambda member: member.conversion.version,
    "hashed_tokens": lambda member: member.conversion.hashed_tokens,
    "case_sensitive": lambda member: member.conversion.case_sensitive,
    "word_hash": lambda member: member.conversion.word_hash,
    "puzzle_policy": lambda member: member.conversion.puzzle_policy,
    "puzzle_space": lambda member: member.conversion.puzzle_space,
    "tasks": lambda member: _in_short(member.conversion.tasks),
}
"""Fields in which members have to agree, or they would read a message as different examples."""


class Ensemble:
    """Several checkpoints that answer as one; a `Model` like a single checkpoint.

    Args:
        members: The checkpoints, at least two.
        strategy: How the token of a position is chosen.
        weights: Positive numbers, scaled to sum 1 (default: all equal). They weigh the average and
            the Q logits, and break ties of votes.
        stacking: The fitted combiner, for the strategy `stacking` only. It has weights of its own.

    Raises:
        EnsembleError: The members do not go together.
    """

    def __init__(
        self,
        members: Sequence[Checkpoint],
        strategy: Strategy = Strategy.WEIGHTED_AVERAGE,
        weights: Sequence[float] | None = None,
        stacking: Stacking | None = None,
    ) -> None:
        check_members(members)
        self.members = tuple(members)
        self.strategy = strategy
        self.weights = normalised(weights, len(members))
        self.stacking = stacking
        head = members[0].config.token_head
        shares = torch.tensor(self.weights, dtype=torch.float64)
        self.combine = _combine(strategy, shares, stacking, head)
        digests = tuple(member.digest for member in members)
        if stacking is not None and stacking.members != digests:
            raise EnsembleError(
                "the combiner was fitted for other checkpoints, or in another order: give those, "
                "or fit it again with --calibration"
            )
        self.name = _name([member.name for member in members])
        self.digest = _digest(strategy, self.weights, digests, stacking)
        configs = [member.config for member in members]
        self.config = configs[0].model_copy(
            update={
                "num_puzzle_identifiers": min(each.num_puzzle_identifiers for each in configs),
                "halt_max_steps": max(each.halt_max_steps for each in configs),
            }
        )
        """Sizes of the first member, with the fewest puzzles and most ACT steps of any member."""
        self.conversion = members[0].conversion
        self.training = common_training(members)
        """The pairs that all members were trained on, what all accept for them, and the sum of
        their target token counts."""

    @property
    def figures(self) -> None:
        """None are recorded of an ensemble; each member has its own."""

    @property
    def trained_on(self) -> date | None:
        """The day of the oldest member's training; None if that of a member is not recorded."""
        days = [member.trained_on for member in self.members]
        known = [day for day in days if day is not None]
        return min(known) if len(known) == len(days) else None

    def halting_evidence(self, max_steps: int | None = None) -> Evidence:
        """The halting rule that the figures of all members support, and why."""
        return joint_evidence(
            {member.name: member.halting_evidence(max_steps) for member in self.members}
        )

    def open(self, inference: Inference, device: torch.device | str) -> Predictor:
        """Load all members onto `device` and start to answer examples with them, as one.

        As `Inference.open` does with a single checkpoint.
        """
        join = join_by(self.weights, self.combine)
        engine = inference.engine(self.members, device, keep_logits=True, join=join)
        return inference.cached(engine, self.config)


def load_members(names: Sequence[str], folder: Path) -> list[Checkpoint]:
    """Load the checkpoints with these paths, or names in `folder`.

    Raises:
        CheckpointError: One of them cannot be found, read or used.
        EnsembleError: They do not go together.
    """
    members = [open_checkpoint(name, folder) for name in names]
    check_members(members)
    return members


def check_members(members: Sequence[Checkpoint]) -> None:
    """Raise `EnsembleError` for fewer than two members, equal ones, or ones that do not agree."""
    if len(members) < _MIN_MEMBERS:
        raise EnsembleError("an ensemble has at least two checkpoints: name another")
    first, *others = members
    for index, member in enumerate(members):
        for other in members[:index]:
            if other.digest == member.digest:
                raise EnsembleError(
                    f"{other.path} and {member.path} are the same checkpoint: name it once, and "
                    "give it a larger weight if it should count for more"
                )
    for other in others:
        for field, value_of in SHARED_FIELDS.items():
            ours, theirs = value_of(first), value_of(other)
            if ours != theirs:
                raise EnsembleError(
                    f"{first.name} has {field} {ours}, {other.name} has {theirs}: an ensemble's "
                    "checkpoints have to agree in it"
                )
        if clashes := _clashing_answers(first.training, other.training):
            raise EnsembleError(
                f"{first.name} and {other.name} hold the accepted answers of {clashes} prompts in "
                "different puzzle rows, and an ensemble asks all members with one: train them on "
                "the same file with the same puzzle space"
            )


def _clashing_answers(ours: TrainingRecord | None, theirs: TrainingRecord | None) -> int:
    """The number of pairs with an answer that two members hold in different rows."""
    if ours is None or theirs is None:
        return 0
    return sum(
        any(theirs.answers[pair].get(target, row) != row for target, row in answers.items())
        for pair, answers in ours.answers.items()
        if pair in theirs.answers
    )


def normalised(weights: Sequence[float] | None, members: int) -> tuple[float, ...]:
    """Scale `weights` to sum 1; without any, all are equal. Raises `EnsembleError`."""
    weights = weights or (1.0,) * members
    if len(weights) != members:
        raise EnsembleError(f"{len(weights)} weights for {members} checkpoints: give one each")
    for weight in weights:
        if not 0 < weight < math.inf:
            raise EnsembleError(f"weight {weight:g}: give a positive number, or drop the member")
    largest = max(weights)  # divided by first, so that no sum is infinite
    scaled = [weight / largest for weight in weights]
    if min(scaled) == 0:
        raise EnsembleError("the smallest weight is nothing beside the largest: drop its member")
    return tuple(weight / sum(scaled) for weight in scaled)


def _combine(
    strategy: Strategy, weights: Tensor, stacking: Stacking | None, head: TokenHead
) -> Combine:
    if (stacking is not None) != (strategy is Strategy.STACKING):
        raise EnsembleError("a combiner and the strategy stacking go together: give both")
    if stacking is not None:
        return stacking.coefficients().tokens
    if strategy is Strategy.VOTING:
        return partial(vote, weights=weights)
    return partial(weighted_average, weights=weights, head=head)


def _name(names: Sequence[str]) -> str:
    name = f"ensemble({'+'.join(names)})"
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 4]}...)"


def _digest(
    strategy: Strategy,
    weights: Sequence[float],
    members: Sequence[str],
    stacking: Stacking | None,
) -> str:
    """SHA-256 of everything an answer depends on."""
    combiner = None if stacking is None else [stacking.weight, stacking.bias]
    content = json.dumps([strategy, weights, members, combiner], separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def common_training(members: Sequence[Checkpoint]) -> TrainingRecord | None:
    """The pairs that all members were trained on; None if one of them has no record."""
    present = [member.training for member in members if member.training is not None]
    if len(present) < len(members):
        return None
    counts = zip(*(record.target_token_counts for record in present), strict=True)
    accepted = [record.accepted for record in present if record.accepted is not None]
    complete = len(accepted) == len(present)
    return TrainingRecord(
        format_version=2 if complete else 1,
        pair_hashes=frozenset.intersection(*(record.pair_hashes for record in present)),
        target_token_counts=tuple(map(sum, counts)),
        accepted=reduce(Accepted.common, accepted) if complete else None,
    )
