"""The pairs of a self-test: a few that a checkpoint solves by its own record.

Knows checkpoints and their accepted pairs; nothing of who computes them, or of what follows if they
are not solved.
"""

from collections.abc import Sequence

from hrm.checkpoint import Checkpoint
from hrm.checkpoint.pairs import with_answer_rows
from schemas import HaltedBy, HRMExample

PAIRS = 8
"""Pairs of a self-test. A device, a kernel or a dtype that computes wrongly solves none of them,
and eight hardly delay a start."""


def known_pairs(
    members: Sequence[Checkpoint],
    halting: HaltedBy,
    max_steps: int | None = None,
    *,
    count: int = PAIRS,
) -> list[HRMExample]:
    """Choose accepted pairs that every member solves by its record, always the same ones.

    An ensemble solves what all of its members solve. There are none if a member has no record of
    its own weights, or if it is of another number of ACT steps.

    Args:
        members: A single checkpoint, or those that answer as one.
        halting: The halting rule under which they answer.
        max_steps: ACT steps per example, or None for each checkpoint's own.
        count: The most pairs to choose.

    Raises:
        CheckpointError: The accepted pairs of a member are damaged.
    """
    first, *others = (_solved(member, halting, max_steps) for member in members)
    common = [each for key, each in first.items() if all(key in other for other in others)]
    if len(common) <= count:
        return common
    # Spread over all of them, since neighbours in a file are often alike.
    return [common[number * len(common) // count] for number in range(count)]


def _solved(
    checkpoint: Checkpoint, halting: HaltedBy, max_steps: int | None
) -> dict[tuple[object, ...], HRMExample]:
    """The pairs that a checkpoint solves, in the puzzle rows that hold their answers."""
    if max_steps not in {None, checkpoint.config.halt_max_steps}:
        return {}
    pairs = checkpoint.accepted_pairs()
    flags = None if pairs is None else pairs.solved_with(checkpoint.digest)
    if pairs is None or flags is None:
        return {}
    answers = {} if checkpoint.training is None else checkpoint.training.answers
    examples = with_answer_rows(pairs, answers)
    return {
        (each.puzzle_id, each.input_sequence, each.target_sequence): each
        for each, is_solved in zip(examples, flags[halting].tolist(), strict=True)
        if is_solved
    }
