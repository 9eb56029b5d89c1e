"""Settings of the conversion from messages to examples, which every checkpoint records."""

from collections import Counter
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from schemas.message import Identifier


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
    TASK = "task"
    """The row of the task that the message names, or whose template its prompt fits; without one
    that the checkpoint knows, as `prompt_hash`."""


ENOUGH_PROMPTS = 20
"""Accepted prompts of a puzzle from which other prompts of it can be judged."""


class Task(BaseModel):
    """A task that a checkpoint knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Identifier
    row: int = Field(ge=0, description="Its row of the puzzle table.")
    template: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(),
        description="Of a task that nobody named: the tokens that its prompts have in common.",
    )

    @model_serializer(mode="wrap")
    def _without_template(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        return fields if self.template else {"name": self.name, "row": self.row}


MAX_HASHED_TOKENS = 8192
"""Most hashed tokens of conversion 2. With so many, one of 8,192 changed words is
missed, and the token head takes a fifth of the products of an ACT step at full width."""

_SINCE_VERSION_2 = ("version", "hashed_tokens", "case_sensitive")


class ConversionConfig(BaseModel):
    """How messages become examples. A checkpoint records the settings it was trained with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1, 2] = Field(
        default=1,
        description="1: 12 tokens and 98 words, the format of published files and of the v9 "
        "checkpoints. 2: hundreds of hashed tokens, normalised texts, and completions of any "
        "usual length, in parts.",
    )
    hashed_tokens: int = Field(
        default=1011,
        ge=1,
        le=MAX_HASHED_TOKENS,
        description="Conversion 2: tokens that words without an entry share. Of as many changed "
        "words, the model misses one.",
    )
    case_sensitive: bool = Field(
        default=False, description="Conversion 2: whether upper and lower case differ."
    )
    word_hash: WordHash = WordHash.MD5
    puzzle_policy: PuzzlePolicy = PuzzlePolicy.PROMPT_HASH
    puzzle_space: int = Field(
        default=1000, ge=1, description="Number of puzzle ids the policies choose from."
    )
    tasks: tuple[Task, ...] = Field(
        default=(),
        description="Policy `task`: the tasks, each with a row of its own, which no hash chooses.",
    )

    @model_validator(mode="after")
    def _check_version(self) -> Self:
        for name in self.model_fields_set.intersection(_SINCE_VERSION_2[1:]):
            if self.version == 1 and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: conversion 1 has no choice of it: name version 2")
        return self

    @model_validator(mode="after")
    def _check_tasks(self) -> Self:
        if bool(self.tasks) != (self.puzzle_policy is PuzzlePolicy.TASK):
            raise ValueError("tasks: the puzzle policy task has them, and no other has")
        for values in ([each.name for each in self.tasks], [each.row for each in self.tasks]):
            repeated = [value for value, count in Counter(values).items() if count > 1]
            if repeated:
                raise ValueError(f"tasks: {repeated[0]} twice: give each task a row of its own")
        if any(each.row < self.puzzle_space for each in self.tasks):
            raise ValueError(
                "tasks: a row below puzzle_space, where hashes choose: take a free one"
            )
        return self

    @property
    def in_force(self) -> dict[str, Any]:
        """The version, and all settings that it has."""
        return {"version": self.version, **self.model_dump(mode="json")}

    @model_serializer(mode="wrap")
    def _as_of_version(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Settings that are not in use are left out, as before there were any: digests stay."""
        fields: dict[str, Any] = write(self)
        if self.version == 1:
            for name in _SINCE_VERSION_2:
                fields.pop(name, None)
        if not self.tasks:
            fields.pop("tasks", None)
        return fields
