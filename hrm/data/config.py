"""How messages become examples: the choices that a checkpoint records and a file follows."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class WordHash(StrEnum):
    """The digest that gives a token to a word without a vocabulary entry."""

    MD5 = "md5"
    SHA256 = "sha256"


class PuzzlePolicy(StrEnum):
    """How a message without `puzzle_id` gets one."""

    LINE_INDEX = "line_index"
    """In a file: the line's index modulo the puzzle space."""
    PROMPT_HASH = "prompt_hash"
    """In a stream: md5 of the prompt modulo the puzzle space, the same in every process."""


class ConversionConfig(BaseModel):
    """How messages become examples. A checkpoint records what it was trained with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    word_hash: WordHash = WordHash.MD5
    puzzle_policy: PuzzlePolicy = PuzzlePolicy.PROMPT_HASH
    puzzle_space: int = Field(default=1000, ge=1, description="Puzzle ids the policies give.")
