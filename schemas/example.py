"""The HRM example: one message in the 12-token format, as one line of a JSONL file."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.categories import Difficulty

VOCABULARY_SIZE = 12
MAX_SEQUENCE_LENGTH = 100
"""Longest sequence in tokens, including the start and end tokens."""

Token = Annotated[int, Field(strict=True, ge=0, lt=VOCABULARY_SIZE)]
Sequence = Annotated[tuple[Token, ...], Field(min_length=2, max_length=MAX_SEQUENCE_LENGTH)]


class SolutionStep(BaseModel):
    """A placeholder that the format requires: actions alternate 0, 1; there is no state."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Literal[0, 1]
    state: None = None


class ExampleMetadata(BaseModel):
    """An example's origin, and the lengths of its texts in characters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["sqe_agent"] = "sqe_agent"
    prompt_length: int = Field(ge=1)
    completion_length: int = Field(ge=1)
    difficulty: Difficulty


class HRMExample(BaseModel):
    """A message as tokens: exactly these keys, in this order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    puzzle_id: Annotated[int, Field(strict=True, ge=0)]
    input_sequence: Sequence
    target_sequence: Sequence
    solution_steps: tuple[SolutionStep, ...]
    metadata: ExampleMetadata
