"""Messages to HRM examples, exactly by the contract's rules.

Knows one message at a time: its forms, puzzle id, sequences, solution steps and metadata. Knows
nothing of files (`hrm.data.files`) or queues.
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
"""Characters of prompt and completion from which an example is of medium difficulty."""

HARD_FROM = 1500
"""Characters of prompt and completion from which an example is hard."""


def difficulty_of(characters: int) -> Difficulty:
    """The difficulty of a message whose prompt and completion have so many characters."""
    if characters < MEDIUM_FROM:
        return Difficulty.EASY
    return Difficulty.MEDIUM if characters < HARD_FROM else Difficulty.HARD


def _alternating(length: int) -> tuple[SolutionStep, ...]:
    actions: tuple[Literal[0], Literal[1]] = (0, 1)
    return tuple(SolutionStep(action=actions[index % 2]) for index in range(length))


# Sequences have few lengths: what depends on them only is made once.
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


Content = SQEMessage | AcceptedPair | HRMExample
"""Everything that is, or can become, an example: what a line of a data file holds."""


class Converter:
    """Turns messages into examples by one configuration. Threads may share one."""

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
        """The example of a prompt and a completion of at least one character each.

        `puzzle_id` and `line_index` are those of `puzzle_id_for`, which also says what is raised.
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
        """The example of a message or pair, or `content` itself if it is an example already.

        Raises as `puzzle_id_for` does.
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
        """`convert(…).model_dump_json()`, letter for letter, without the objects in between.

        Files are converted with it: building and validating an example costs several times what
        its tokens cost.
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
        """The message's own `puzzle_id` where it has one, else one by the configured policy.

        `line_index` counts the lines of a file from 0. Raises `MessageRejected` (missing field)
        when the policy is `line_index` and there is neither.
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
