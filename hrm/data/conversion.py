"""Conversion of single messages to HRM examples, exactly by the contract's rules.

Knows the forms of a message and its puzzle id, sequences, solution steps and metadata. Knows
nothing of queues, or of files, which `hrm.data.files` knows.
"""

import hashlib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from hrm.data.config import ConversionConfig, PuzzlePolicy
from hrm.data.vocabulary import Tokenizer
from schemas import (
    MAX_SEQUENCE_LENGTH,
    Category,
    Difficulty,
    ExampleMetadata,
    HRMExample,
    MessageRejected,
    RejectionReason,
    SolutionStep,
    SQEMessage,
)
from schemas.message import Text

MEDIUM_FROM = 500
"""Characters of prompt and completion together from which an example is of medium difficulty."""

HARD_FROM = 1500
"""Characters of prompt and completion together from which an example is hard."""


def difficulty_of(characters: int) -> Difficulty:
    """The difficulty of a message with this many characters in prompt and completion together."""
    if characters < MEDIUM_FROM:
        return Difficulty.EASY
    return Difficulty.MEDIUM if characters < HARD_FROM else Difficulty.HARD


def _alternating(length: int) -> tuple[SolutionStep, ...]:
    actions: tuple[Literal[0], Literal[1]] = (0, 1)
    return tuple(SolutionStep(action=actions[index % 2]) for index in range(length))


# Sequences have few lengths, so everything that depends on nothing else is made once.
_STEPS = tuple(_alternating(length) for length in range(MAX_SEQUENCE_LENGTH + 1))
_STEPS_JSON = tuple(
    "[" + ",".join(step.model_dump_json() for step in steps) + "]" for steps in _STEPS
)


class AcceptedPair(BaseModel):
    """A message without its envelope: one line of a file of accepted pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Text
    completion: Text
    puzzle_id: Annotated[int, Field(strict=True, ge=0)] | None = None
    category: Category | None = None
    alternative: Annotated[bool, Field(strict=True)] = False
    """Whether the completion is accepted beside those of other lines with the same prompt. Only
    training asks for it."""


Content = SQEMessage | AcceptedPair | HRMExample
"""Everything that is, or can become, an example: what a line of a data file holds."""


def name_of(content: Content, line_index: int) -> str:
    """The message's id, or `line:N`, from 1, for a line that holds no full message."""
    return content.message_id if isinstance(content, SQEMessage) else f"line:{line_index + 1}"


class Converter:
    """Turns messages into examples under one configuration. Threads may share one."""

    def __init__(self, config: ConversionConfig) -> None:
        self.config = config
        self.tokenizer = Tokenizer(config.word_hash)

    def convert(
        self,
        prompt: str,
        completion: str,
        puzzle_id: int | None = None,
        line_index: int | None = None,
    ) -> HRMExample:
        """Convert a prompt and a completion, each of at least one character.

        Args:
            prompt: The input text.
            completion: The target text.
            puzzle_id: The message's own puzzle id, if it has one.
            line_index: The index of the message's line in its file, from 0, for the puzzle policy
                `line_index`.

        Raises:
            MessageRejected: `puzzle_id_for` cannot choose a puzzle id.
        """
        inputs = self.tokenizer.sequence(prompt)
        targets = self.tokenizer.sequence(completion)
        return HRMExample(
            puzzle_id=self.puzzle_id_for(prompt, puzzle_id, line_index),
            input_sequence=tuple(inputs),
            target_sequence=tuple(targets),
            solution_steps=_STEPS[min(len(inputs), len(targets))],
            metadata=ExampleMetadata(
                prompt_length=len(prompt),
                completion_length=len(completion),
                difficulty=difficulty_of(len(prompt) + len(completion)),
            ),
        )

    def example_of(self, content: Content, line_index: int | None = None) -> HRMExample:
        """The example of a message or pair; an example is returned as it is.

        `line_index` and the `MessageRejected` that is raised are those of `puzzle_id_for`.
        """
        if isinstance(content, HRMExample):
            return content
        return self.convert(content.prompt, content.completion, content.puzzle_id, line_index)

    def convert_to_json(
        self,
        prompt: str,
        completion: str,
        puzzle_id: int | None = None,
        line_index: int | None = None,
    ) -> str:
        """The text of `convert(…).model_dump_json()`, made without building the example.

        File conversion uses this method, because building and validating an example costs several
        times as much as computing its tokens.
        """
        inputs = self.tokenizer.decimals(prompt)
        targets = self.tokenizer.decimals(completion)
        prompt_length, completion_length = len(prompt), len(completion)
        return (
            f'{{"puzzle_id":{self.puzzle_id_for(prompt, puzzle_id, line_index)}'
            f',"input_sequence":[{",".join(inputs)}]'
            f',"target_sequence":[{",".join(targets)}]'
            f',"solution_steps":{_STEPS_JSON[min(len(inputs), len(targets))]}'
            f',"metadata":{{"source":"sqe_agent","prompt_length":{prompt_length}'
            f',"completion_length":{completion_length}'
            f',"difficulty":"{difficulty_of(prompt_length + completion_length).value}"}}}}'
        )

    def puzzle_id_for(
        self, prompt: str, puzzle_id: int | None = None, line_index: int | None = None
    ) -> int:
        """The message's own `puzzle_id` if it has one, otherwise one chosen by the puzzle policy.

        `line_index` counts the lines of a file from 0. Raises `MessageRejected` (missing field)
        if the policy is `line_index` and neither is given.
        """
        if puzzle_id is not None:
            return puzzle_id
        if self.config.puzzle_policy is PuzzlePolicy.PROMPT_HASH:
            digest = hashlib.md5(prompt.encode(), usedforsecurity=False).digest()
            return int.from_bytes(digest, "big") % self.config.puzzle_space
        if line_index is None:
            raise MessageRejected(
                RejectionReason.MISSING_FIELD,
                "field 'puzzle_id': the puzzle policy line_index has no line to count here: add it",
            )
        return line_index % self.config.puzzle_space
