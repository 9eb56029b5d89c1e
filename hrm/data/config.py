"""Settings of the conversion from messages to examples, which every checkpoint records."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class WordHash(StrEnum):
    """The digest that chooses the token of a word without a vocabulary entry."""

    MD5 = "md5"
    SHA256 = "sha256"


class PuzzlePolicy(StrEnum):
    """The rule that gives a puzzle id to a message without one."""

    LINE_INDEX = "line_index"
    """For files: the index of the line modulo the puzzle space."""
    PROMPT_HASH = "prompt_hash"
    """For streams: MD5 of the prompt modulo the puzzle space, the same in every process."""


class ConversionConfig(BaseModel):
    """How messages become examples. A checkpoint records the settings it was trained with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    word_hash: WordHash = WordHash.MD5
    puzzle_policy: PuzzlePolicy = PuzzlePolicy.PROMPT_HASH
    puzzle_space: int = Field(
        default=1000, ge=1, description="Number of puzzle ids the policies choose from."
    )
