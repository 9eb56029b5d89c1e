"""Conversion of single messages to HRM examples, exactly by the contract's rules.

Knows the forms of a message and its puzzle id, sequences, solution steps and metadata, and the
parts in which a network reads a long example. Knows nothing of queues, or of files, which
`hrm.data.files` knows.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from hrm.data.config import ConversionConfig, PuzzlePolicy
from hrm.data.templates import fits
from hrm.data.texts import normalised
from hrm.data.variations import Words
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
from schemas.message import Identifier, Text

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


def solution_steps(length: int) -> tuple[SolutionStep, ...]:
    """The steps of an example whose shorter sequence has `length` tokens."""
    return _STEPS[length]


class AcceptedPair(BaseModel):
    """A message without its envelope: one line of a file of accepted pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Text
    completion: Text
    puzzle_id: Annotated[int, Field(strict=True, ge=0)] | None = None
    task: Identifier | None = None
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
        self.tokenizer = Tokenizer(config)
        self._task_rows = {task.name: task.row for task in config.tasks}
        # The longest that a prompt fits says most about it.
        self._templates = sorted(
            ((task.template, task.row) for task in config.tasks if task.template),
            key=lambda each: -len(each[0]),
        )

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
            puzzle_id: The puzzle that the message names, if it names one.
            line_index: The index of the message's line in its file, from 0, for the puzzle policy
                `line_index`.

        Raises:
            MessageRejected: A text has no word, or `puzzle_id_for` cannot choose a puzzle id.
        """
        self._check_words(prompt, completion)
        inputs = self.tokenizer.sequence(prompt)
        targets = self.tokenizer.target(completion)
        return HRMExample(
            puzzle_id=self.puzzle_id_for(prompt, puzzle_id, line_index),
            input_sequence=tuple(inputs),
            target_sequence=tuple(targets),
            solution_steps=solution_steps(min(len(inputs), len(targets))),
            metadata=ExampleMetadata(
                prompt_length=len(prompt),
                completion_length=len(completion),
                difficulty=difficulty_of(len(prompt) + len(completion)),
            ),
        )

    def parts(self, example: HRMExample) -> Sequence[HRMExample]:
        """The parts in which a network reads `example`: itself if its target is short enough.

        Each part is an example of its own with a piece of the target, of 100 tokens but for the
        last. Its input begins with another token: the second part with the first hashed token in
        place of the start token, the third with the second, and so on. No word stands there, so
        that the network can tell which part it is asked for. Only the last part holds the end
        token. Conversion 1 has no parts.

        Raises:
            MessageRejected: The conversion has fewer hashed tokens than the example has parts.
        """
        target = example.target_sequence
        if len(target) <= MAX_SEQUENCE_LENGTH or self.config.version == 1:
            return (example,)
        starts = range(0, len(target), MAX_SEQUENCE_LENGTH)
        vocabulary = self.tokenizer.vocabulary
        if len(starts) - 1 > vocabulary.hashed:
            raise MessageRejected(
                RejectionReason.TOO_LARGE,
                f"field 'completion': {len(starts)} parts of {MAX_SEQUENCE_LENGTH} tokens, but the "
                f"checkpoint tells {vocabulary.hashed + 1} apart: shorten it",
            )
        after_start = example.input_sequence[1:]
        markers = (vocabulary.start, *range(len(vocabulary.names), vocabulary.size))
        return [
            example.model_copy(
                update={
                    "input_sequence": (marker, *after_start),
                    "target_sequence": target[start : start + MAX_SEQUENCE_LENGTH],
                    "solution_steps": (),
                }
            )
            for start, marker in zip(starts, markers, strict=False)
        ]

    def example_of(self, content: Content, line_index: int | None = None) -> HRMExample:
        """The example of a message or pair; an example is returned as it is.

        `line_index` and the `MessageRejected` that is raised are those of `convert`. An example of
        another conversion is rejected, too, as far as its tokens show.
        """
        if isinstance(content, HRMExample):
            self._check_tokens(content)
            return content
        named = self.named_puzzle(content)
        return self.convert(content.prompt, content.completion, named, line_index)

    def named_puzzle(self, content: Content) -> int | None:
        """The puzzle that a message names: as its `puzzle_id`, by its task, or by a prompt that
        fits the template of one.

        None if it names none that has a row; and for an example, whose puzzle may be one that a
        policy drew.
        """
        if isinstance(content, HRMExample):
            return None
        if content.puzzle_id is not None:
            return content.puzzle_id
        if content.task in self._task_rows:
            return self._task_rows[content.task]
        if not self._templates:
            return None
        words = self.words(content.prompt)
        return next((row for template, row in self._templates if fits(template, words)), None)

    def words(self, prompt: str) -> Words:
        """The tokens of a prompt's words, as far as its sequence holds them."""
        return tuple(self.tokenizer.sequence(prompt)[1:-1])

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
        self._check_words(prompt, completion)
        inputs = self.tokenizer.decimals(prompt)
        targets = self.tokenizer.decimals(completion, self.tokenizer.max_target_words)
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
        """The `puzzle_id` that a message names, otherwise one chosen by the puzzle policy.

        `line_index` counts the lines of a file from 0. Raises `MessageRejected` (missing field)
        if the policy is `line_index` and neither is given.
        """
        if puzzle_id is not None:
            return puzzle_id
        if self.config.puzzle_policy is not PuzzlePolicy.LINE_INDEX:
            text = prompt if self.config.version == 1 else normalised(prompt)
            digest = hashlib.md5(text.encode(), usedforsecurity=False).digest()
            return int.from_bytes(digest, "big") % self.config.puzzle_space
        if line_index is None:
            raise MessageRejected(
                RejectionReason.MISSING_FIELD,
                "field 'puzzle_id': the puzzle policy line_index has no line to count here: add it",
            )
        return line_index % self.config.puzzle_space

    def _check_tokens(self, example: HRMExample) -> None:
        vocabulary, version = self.tokenizer.vocabulary, self.config.version
        size, ends = vocabulary.size, (vocabulary.start, vocabulary.end)
        for field, tokens in (
            ("input_sequence", example.input_sequence),
            ("target_sequence", example.target_sequence),
        ):
            if max(tokens) >= size:
                problem = f"token {max(tokens)}, but conversion {version} has {size}"
            elif len(tokens) > MAX_SEQUENCE_LENGTH and version == 1:
                problem = f"{len(tokens)} tokens, but conversion 1 gives {MAX_SEQUENCE_LENGTH}"
            elif version != 1 and (tokens[0], tokens[-1]) != ends:
                # Files of conversion 1 may hold any tokens that others published.
                problem = (
                    f"not from the start {ends[0]} to the end {ends[1]} of conversion {version}"
                )
            else:
                continue
            raise MessageRejected(
                RejectionReason.INVALID_VALUE,
                f"field '{field}': {problem}: convert the message as for this checkpoint",
            )

    def _check_words(self, prompt: str, completion: str) -> None:
        """Conversion 2 takes texts for their words, so that it has nothing to tell blank ones by.

        Conversion 1 stays as it was published: a blank text is a start and an end.
        """
        if self.config.version == 1:
            return
        for field, text in (("prompt", prompt), ("completion", completion)):
            if text.isspace():
                raise MessageRejected(
                    RejectionReason.EMPTY_TEXT, f"field '{field}': white space alone: send words"
                )
