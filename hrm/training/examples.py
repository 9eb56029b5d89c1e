"""Training examples: read from files, split, and recorded.

Knows messages, lines and which examples may be trained on; nothing of tensors or networks.
"""

import random
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from hrm.checkpoint import TrainingRecord, pair_hash
from hrm.data.conversion import Converter
from hrm.data.files import DEFAULT_READER, RefusedLine
from schemas import VOCABULARY_SIZE, HRMExample, SQEHRMError

MAX_PUZZLES = 2**20
"""Rows of the largest puzzle table: ten times as many as v9 has. With 256 numbers per row it takes
1 GiB, and training holds it twice; one mistyped `puzzle_id` must not demand more."""


class TrainingDataError(SQEHRMError):
    """A file that cannot be used for training."""


def read_examples(
    path: Path, converter: Converter, *, excluded: AbstractSet[str] = frozenset()
) -> list[HRMExample]:
    """Read the JSONL file `path` and convert every message to an example.

    No line is skipped: a model trained on part of its file would be taken for one trained on all
    of it.

    Args:
        path: The file of messages and bare pairs.
        converter: Turns messages into examples.
        excluded: Hashes of puzzle and input that must not occur.

    Raises:
        TrainingDataError: A line, which is named, holds no message, a puzzle beyond the largest
            table, or an excluded pair; or the file cannot be read or holds no message.
    """
    examples = []
    try:
        with path.open("rb") as file:
            for index, content in DEFAULT_READER.messages(file):
                where = f"{path}: line {index + 1}"
                if isinstance(content, RefusedLine):
                    raise TrainingDataError(f"{where}: {content.detail}")
                example = converter.example_of(content, index)
                if example.puzzle_id >= MAX_PUZZLES:
                    raise TrainingDataError(
                        f"{where}: puzzle_id {_short(example.puzzle_id)} is beyond the largest "
                        f"puzzle table: number puzzles from 0 to {MAX_PUZZLES - 1}, or leave it out"
                    )
                if hash_of(example) in excluded:
                    raise TrainingDataError(
                        f"{where}: has the puzzle and input tokens of a training message, so it "
                        "is not held out: remove it from one of the files"
                    )
                examples.append(example)
    except OSError as error:
        raise TrainingDataError(f"{path}: cannot be read: {error.strerror}") from None
    if not examples:
        raise TrainingDataError(f"{path} holds no message: give accepted prompts and completions")
    return examples


def split(
    examples: Sequence[HRMExample], share: float, seed: int
) -> tuple[list[HRMExample], list[HRMExample]]:
    """Split `examples` into those to train on and those to hold out, both in their given order.

    The draw is not stratified: it ignores category and length.

    Args:
        examples: All examples.
        share: Share of the distinct pairs of puzzle and input to hold out; at least one pair is.
        seed: Seed of the draw.

    Raises:
        TrainingDataError: Nothing would be left to train on.
    """
    hashes = sorted({hash_of(example) for example in examples})
    count = max(1, round(share * len(hashes)))
    if count >= len(hashes):
        raise TrainingDataError(
            f"{len(hashes)} distinct messages are too few to hold out {share:g} of them: "
            "give more, or hold out less"
        )
    # Not cryptographic: the same seed has to draw the same examples.
    drawn = set(random.Random(seed).sample(hashes, count))  # noqa: S311
    held_out = [example for example in examples if hash_of(example) in drawn]
    return [example for example in examples if hash_of(example) not in drawn], held_out


def training_record(examples: Sequence[HRMExample]) -> TrainingRecord:
    """The record of `examples` that a checkpoint trained on them keeps."""
    tokens = Counter(token for example in examples for token in example.target_sequence)
    return TrainingRecord(
        pair_hashes=frozenset(map(hash_of, examples)),
        target_token_counts=tuple(tokens[token] for token in range(VOCABULARY_SIZE)),
    )


def hash_of(example: HRMExample) -> str:
    """The hash of an example's puzzle and input."""
    return pair_hash(example.puzzle_id, example.input_sequence)


def _short(number: int) -> str:
    digits = str(number)
    return digits if len(digits) <= len(str(MAX_PUZZLES)) + 3 else f"{digits[:8]}…"
