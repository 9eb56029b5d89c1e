"""The HRM example: one message as tokens, as one line of a JSONL file."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.categories import Difficulty

VOCABULARY_SIZE = 12
"""Tokens of conversion 1."""

MAX_SEQUENCE_LENGTH = 100
"""Longest sequence that a network reads or writes at once, in tokens, start and end included."""

MAX_TARGET_LENGTH = 64 * MAX_SEQUENCE_LENGTH
"""Longest target in tokens. Conversion 2 cuts it into parts of `MAX_SEQUENCE_LENGTH`."""

Token = Annotated[int, Field(strict=True, ge=0, lt=2**16)]
"""A token's id. A checkpoint's conversion says how many tokens there are: 12 in conversion 1."""

Input = Annotated[tuple[Token, ...], Field(min_length=2, max_length=MAX_SEQUENCE_LENGTH)]
Target = Annotated[tuple[Token, ...], Field(min_length=2, max_length=MAX_TARGET_LENGTH)]


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
    input_sequence: Input
    target_sequence: Target
    solution_steps: tuple[SolutionStep, ...]
    metadata: ExampleMetadata
