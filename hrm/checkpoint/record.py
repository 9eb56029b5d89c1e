"""The record of a checkpoint's training data: hashes, counts and lengths, and no text.

Knows what verdicts need to know of the training set; nothing of weights, and no torch. Version 1 of
a record knows its pairs alone; version 2 also knows what was accepted for them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    model_validator,
)

from hrm.checkpoint.names import CheckpointError
from hrm.data.texts import AcceptedTexts, Hash, text_hash
from schemas import MAX_SEQUENCE_LENGTH, VOCABULARY_SIZE, first_problem

TRAINING_PAIRS = "training_pairs.json"
"""File in a checkpoint folder that holds its `TrainingRecord`."""

Length = Annotated[int, Field(ge=2, le=MAX_SEQUENCE_LENGTH)]
"""Tokens of a target, start and end included."""


def pair_hash(puzzle_id: int, input_sequence: Sequence[int]) -> str:
    """Hash that identifies a training pair by puzzle and input: 32 hexadecimal characters."""
    return text_hash(f"{puzzle_id}:{','.join(map(str, input_sequence))}")


class Accepted(BaseModel):
    """The accepted targets and texts of the training pairs: version 2 of a record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_lengths: Mapping[Hash, tuple[Length, ...]]
    """By the hash of a pair: the lengths of its accepted targets, in order. A word that contains
    "end" has the token of the end, so tokens alone do not show that a target was cut before it."""
    puzzles: frozenset[Annotated[int, Field(ge=0)]]
    """The puzzles of all pairs."""
    texts: AcceptedTexts

    def common(self, other: Self) -> Self:
        """The targets and texts that both accept. A pair without a common length keeps none."""
        lengths = {
            pair: tuple(length for length in own if length in other.target_lengths[pair])
            for pair, own in self.target_lengths.items()
            if pair in other.target_lengths
        }
        return type(self)(
            target_lengths=lengths,
            puzzles=self.puzzles & other.puzzles,
            texts=self.texts.common(other.texts),
        )

    @field_serializer("target_lengths")
    def _lengths_in_order(self, lengths: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
        return dict(sorted(lengths.items()))

    @field_serializer("puzzles")
    def _puzzles_in_order(self, puzzles: frozenset[int]) -> list[int]:
        return sorted(puzzles)


class TrainingRecord(BaseModel):
    """The part of a checkpoint's training data that verdicts need."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1, 2] = 2
    pair_hashes: frozenset[Hash]
    target_token_counts: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        Field(min_length=VOCABULARY_SIZE, max_length=VOCABULARY_SIZE),
    ]
    accepted: Accepted | None = None
    """None in version 1."""

    @model_validator(mode="after")
    def _check_accepted(self) -> Self:
        if (self.accepted is None) != (self.format_version == 1):
            raise ValueError("accepted: version 2 has it, and version 1 has not")
        if self.accepted is not None and self.accepted.target_lengths.keys() != self.pair_hashes:
            raise ValueError("accepted.target_lengths: not of the same pairs as pair_hashes")
        return self

    @field_serializer("pair_hashes")
    def _in_order(self, pair_hashes: frozenset[str]) -> list[str]:
        # Sorted, so that equal records give equal files.
        return sorted(pair_hashes)

    def accepts_length(self, pair: str, length: int) -> bool:
        """Whether a target with this number of tokens can be an accepted one of a pair.

        Only false if `pair`, a `pair_hash`, is known and none of its accepted targets is as long.
        """
        if self.accepted is None:
            return True
        lengths = self.accepted.target_lengths.get(pair)
        return lengths is None or length in lengths

    def to_json(self) -> str:
        """The content of the record's file, without its line end."""
        return self.model_dump_json(indent=1, exclude_none=True)


def read_record(file: Path) -> TrainingRecord | None:
    """Read the record in `file`; None if there is no such file. Raises `CheckpointError`."""
    try:
        return TrainingRecord.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise CheckpointError(
            f"{file}: {first_problem(error)}: restore it, or remove it to go without"
        ) from None
