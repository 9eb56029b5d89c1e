"""Training further without forgetting: what a run takes over from the checkpoint it starts from.

A network that is trained on new pairs alone forgets the old ones before it has learned the first of
the new. So a run that starts from a checkpoint trains on its accepted pairs, too, and its record
holds them. Knows accepted examples and records; nothing of steps or files.
"""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from hrm.checkpoint import Checkpoint, TrainingRecord
from hrm.checkpoint.pairs import AcceptedExample
from hrm.evaluation.statistics import Share
from hrm.training.options import OptionsError
from schemas import HaltedBy

FURTHER: Mapping[str, float] = {"lr": 4e-4, "full_share": 1.0}
"""Options of a run that replays, unless they are given. The learning rate of a new network makes
the Q head forget within 100 steps which messages are solved. And since the Q head halts most
messages at once, the late steps, which `max_steps` runs, are forgotten unless every row runs all
steps: ten new pairs on the 84 of sqe-demo ended with 94 solved under `q` and 91 under `max_steps`
if half of the rows did, and with 94 under both if all did."""


class Parent(BaseModel):
    """The checkpoint that a run started from, as the run keeps it: the folder may go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    digest: str
    replayed: int = Field(ge=0)
    """Accepted pairs of it that are trained on again. They stand before the new ones."""
    forgotten: int | None = Field(default=None, ge=0)
    """Prompts that it knew and the run's checkpoint will not; None if it has no record of them."""


def replayed_examples(base: Checkpoint, given_as: str) -> list[AcceptedExample]:
    """The accepted pairs that `base` holds.

    Args:
        base: The checkpoint that a run starts from.
        given_as: Its name or path as it was given.

    Raises:
        OptionsError: It does not have them, so that they would be forgotten.
        CheckpointError: Its file of pairs is unusable.
    """
    pairs = base.accepted_pairs()
    if pairs is not None:
        return list(pairs)
    if base.training is None:
        raise OptionsError(
            ["init_from"],
            f" {given_as}: has no record of what it was trained on, so nothing of it can be "
            "replayed: give --forget and lose it",
        )
    raise OptionsError(
        ["init_from"],
        f" {given_as}: holds {len(base.training.pair_hashes):,} accepted pairs but not their "
        f"tokens: run `sqe-hrm checkpoint record {given_as} --data-path FILE`, or give --forget "
        "and lose them",
    )


def without_held(examples: Sequence[AcceptedExample]) -> list[AcceptedExample]:
    """`examples` without lines that equal what a checkpoint held: these are one pair."""
    held = {each.key for each in examples if each.held}
    return [each for each in examples if each.held or each.key not in held]


def forgotten(base: Checkpoint, record: TrainingRecord) -> int | None:
    """The number of prompts that `base` knows and `record` does not; None if nobody knows."""
    if base.training is None:
        return None
    return len(base.training.pair_hashes - record.pair_hashes)


def solved_apart(
    solved: Mapping[HaltedBy, Tensor], replayed: int
) -> dict[str, dict[HaltedBy, Share]]:
    """How many of the replayed and of the new messages are solved, under each halting rule.

    Args:
        solved: By halting rule, bool (N,): whether each message is solved.
        replayed: The number of replayed messages, which stand before the new ones.
    """
    parts = {"new": slice(replayed, None), "replayed": slice(replayed)}
    return {
        name: {
            rule: Share.counted(int(flags[part].sum()), len(flags[part]))
            for rule, flags in solved.items()
        }
        for name, part in parts.items()
    }
