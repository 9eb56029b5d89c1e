"""The record of a checkpoint's training data: hashes, counts and lengths, and no text.

Knows what verdicts need to know of the training set; nothing of weights, and no torch. Version 1 of
a record knows its pairs alone; version 2 also knows what was accepted for them.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    model_serializer,
    model_validator,
)

from hrm.checkpoint.names import CheckpointError
from hrm.data.texts import AcceptedTexts, Hash, text_hash
from hrm.data.variations import allowed, distance
from schemas import MAX_TARGET_LENGTH, VOCABULARY_SIZE, first_problem

TRAINING_PAIRS = "training_pairs.json"
"""File in a checkpoint folder that holds its `TrainingRecord`."""

Length = Annotated[int, Field(ge=2, le=MAX_TARGET_LENGTH)]
"""Tokens of a target, start and end included."""


Input = tuple[Annotated[int, Field(ge=0)], ...]
"""The tokens of a prompt, start and end included."""


def pair_hash(puzzle_id: int, input_sequence: Sequence[int]) -> str:
    """Hash that identifies a training pair by puzzle and input: 32 hexadecimal characters."""
    return text_hash(f"{puzzle_id}:{','.join(map(str, input_sequence))}")


def target_hash(target_sequence: Sequence[int]) -> str:
    """Hash that identifies an accepted target by its tokens: 32 hexadecimal characters."""
    return text_hash(",".join(map(str, target_sequence)))


Answers = Mapping[str, Mapping[str, int]]
"""By the hash of a pair that has several accepted targets: the puzzle row that holds each, by
`target_hash`. A network gives one target for a puzzle and an input, so only one can be in the row
of the pair's own puzzle."""


class Variations(BaseModel):
    """The accepted prompts that training varied, so that a prompt near one of them can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    changes: Annotated[int, Field(ge=1)]
    """Most words that were changed, as `hrm.data.variations.allowed` has it for each prompt."""
    prompts: Mapping[
        Annotated[int, Field(ge=0)], tuple[tuple[Annotated[int, Field(ge=0)], ...], ...]
    ]
    """By puzzle: the prompts that were varied; those too short or too much alike were not."""

    def nearest(self, puzzle_id: int, input_sequence: Sequence[int]) -> Sequence[int] | None:
        """The input of the puzzle that differs in few words from this one; None if there is none.

        There is one at most, since prompts whose variations meet are not varied.
        """
        for accepted in self.prompts.get(puzzle_id, ()):
            limit = allowed(accepted[1:-1], self.changes)
            if distance(accepted, input_sequence, limit) <= limit:
                return accepted
        return None

    def common(self, other: Self) -> Self:
        """The prompts that both varied, by as many words as both did."""
        prompts = {
            puzzle: tuple(each for each in own if each in other.prompts.get(puzzle, ()))
            for puzzle, own in self.prompts.items()
        }
        return type(self)(
            changes=min(self.changes, other.changes),
            prompts={puzzle: each for puzzle, each in prompts.items() if each},
        )

    @field_serializer("prompts")
    def _in_order(
        self, prompts: Mapping[int, Sequence[tuple[int, ...]]]
    ) -> dict[int, list[tuple[int, ...]]]:
        return {puzzle: sorted(prompts[puzzle]) for puzzle in sorted(prompts)}


class Accepted(BaseModel):
    """The accepted targets and texts of the training pairs: version 2 of a record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_lengths: Mapping[Hash, tuple[Length, ...]]
    """By the hash of a pair: the lengths of its accepted targets, in order. A word that contains
    "end" has the token of the end, so tokens alone do not show that a target was cut before it."""
    puzzles: frozenset[Annotated[int, Field(ge=0)]]
    """The puzzles of all pairs."""
    texts: AcceptedTexts
    prompt_counts: Mapping[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=2)]] = Field(
        default_factory=dict
    )
    """By puzzle: the number of its prompts, if it has several. Left out if none has."""
    answers: Mapping[Hash, Mapping[Hash, Annotated[int, Field(ge=0)]]] = Field(default_factory=dict)
    """`Answers`, as files hold them: left out if no pair has several."""
    variations: Variations | None = None
    """None, and left out, if training varied no prompt."""

    def common(self, other: Self) -> Self:
        """The targets and texts that both accept. A pair without a common length keeps none.

        Of the answers, those remain that both hold in the same row.
        """
        lengths = {
            pair: tuple(length for length in own if length in other.target_lengths[pair])
            for pair, own in self.target_lengths.items()
            if pair in other.target_lengths
        }
        return type(self)(
            target_lengths=lengths,
            puzzles=self.puzzles & other.puzzles,
            texts=self.texts.common(other.texts),
            prompt_counts={
                puzzle: min(count, other.prompt_counts[puzzle])
                for puzzle, count in self.prompt_counts.items()
                if puzzle in other.prompt_counts
            },
            answers=_common_answers(self.answers, other.answers),
            variations=self.variations
            and other.variations
            and self.variations.common(other.variations),
        )

    @model_validator(mode="after")
    def _check_answers(self) -> Self:
        if not self.answers.keys() <= self.target_lengths.keys():
            raise ValueError("answers: of a pair that target_lengths has not")
        return self

    @field_serializer("target_lengths")
    def _lengths_in_order(self, lengths: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
        return dict(sorted(lengths.items()))

    @field_serializer("puzzles")
    def _puzzles_in_order(self, puzzles: frozenset[int]) -> list[int]:
        return sorted(puzzles)

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without counts and answers if there are none, so that most files stay as they were."""
        fields: dict[str, Any] = write(self)
        for name in ("prompt_counts", "answers"):
            if not fields[name]:
                del fields[name]
        return fields

    @field_serializer("prompt_counts")
    def _counts_in_order(self, counts: Mapping[int, int]) -> dict[int, int]:
        return dict(sorted(counts.items()))

    @field_serializer("answers")
    def _answers_in_order(self, answers: Answers) -> dict[str, dict[str, int]]:
        return {pair: dict(sorted(answers[pair].items())) for pair in sorted(answers)}


def _common_answers(ours: Answers, theirs: Answers) -> Answers:
    common = {}
    for pair in ours.keys() & theirs.keys():
        both = {each: row for each, row in ours[pair].items() if theirs[pair].get(each) == row}
        if both:
            common[pair] = both
    return common


class TrainingRecord(BaseModel):
    """The part of a checkpoint's training data that verdicts need."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1, 2] = 2
    pair_hashes: frozenset[Hash]
    target_token_counts: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        Field(min_length=VOCABULARY_SIZE),
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

    @property
    def answers(self) -> Answers:
        """The pairs that have several accepted targets, and the puzzle row of each."""
        return {} if self.accepted is None else self.accepted.answers

    @property
    def varied_prompts(self) -> int:
        """The number of prompts that training varied."""
        variations = None if self.accepted is None else self.accepted.variations
        return 0 if variations is None else sum(map(len, variations.prompts.values()))

    def prompts_of(self, puzzle: int) -> int:
        """The number of accepted prompts of a puzzle; 1 if none or no number is recorded."""
        return 1 if self.accepted is None else self.accepted.prompt_counts.get(puzzle, 1)

    def rows(self, pair: str) -> Collection[int]:
        """The puzzle rows that hold the targets of a pair; none if it has not several."""
        return self.answers.get(pair, {}).values()

    def varied_pair(self, puzzle_id: int, input_sequence: Sequence[int]) -> str | None:
        """The `pair_hash` of the accepted prompt of this puzzle of which this input is a variation.

        None if it is none that training prepared for.
        """
        variations = None if self.accepted is None else self.accepted.variations
        found = None if variations is None else variations.nearest(puzzle_id, input_sequence)
        return None if found is None else pair_hash(puzzle_id, found)

    def accepts_target(self, pair: str, target: Sequence[int]) -> bool:
        """Whether a target whose tokens are all predicted can be an accepted one of a pair.

        Only false if `pair`, a `pair_hash`, is known and none of its accepted targets is as long;
        or, if it has several, none has these tokens. Those of one that was cut before a word with
        the token of the end may be as many as another has.
        """
        if self.accepted is None:
            return True
        answers = self.accepted.answers.get(pair)
        if answers is not None:
            return target_hash(target) in answers
        lengths = self.accepted.target_lengths.get(pair)
        return lengths is None or len(target) in lengths

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
