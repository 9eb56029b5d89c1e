"""Statistics of a file of messages or converted examples, counted line by line.

Knows counts, lengths and distributions; nothing of terminals or tables. Memory does not grow with
the file, but for the names of tasks.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from hrm.data.categories import categorize
from hrm.data.conversion import AcceptedPair, Converter, difficulty_of
from hrm.data.files import DEFAULT_READER, LineReader, RefusedLine
from hrm.data.templates import MAX_PROMPTS, find_templates
from hrm.data.texts import normalised
from hrm.data.variations import Words
from hrm.data.vocabulary import PART_WORDS, Vocabulary, unread_words
from schemas import (
    MAX_SEQUENCE_LENGTH,
    Category,
    Difficulty,
    HRMExample,
    MessageRejected,
    RejectionReason,
    SQEMessage,
)


class TextStatistics(BaseModel):
    """Figures of one side: prompts and input sequences, or completions and target sequences."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean_characters: float | None = Field(description="Null for an empty file.")
    mean_tokens: float | None = Field(description="Start and end included; null for an empty file.")
    token_counts: tuple[int, ...] = Field(description="Occurrences of each token, by its id.")
    cut: int = Field(description="Sequences cut because their text has more words than they hold.")
    full: int = Field(description="Sequences of 100 tokens or more, whether cut or an exact fit.")
    parts: int = Field(description="Sequences of at most 100 tokens that a network reads.")


FEWEST_PROMPTS = 5
"""Prompts of a task that nobody named, from which it is shown. Training finds it from more on."""


class FoundTask(BaseModel):
    """A task that nobody named, found in prompts that have most words in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: str = Field(description="The common words of the first of its prompts.")
    prompts: int = Field(description="Different prompts.")


class DatasetStatistics(BaseModel):
    """All figures of a file. Means and counts cover `messages` and `examples` together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: int = Field(description="Lines with a full message or a bare pair.")
    examples: int = Field(description="Lines with an already converted example.")
    refused: dict[RejectionReason, int] = Field(description="Lines with neither, by reason.")
    inputs: TextStatistics
    targets: TextStatistics
    difficulties: dict[Difficulty, int]
    categories: dict[Category, int] = Field(
        description="Categories of the messages; an example has none."
    )
    tasks: dict[str, int] = Field(description="Messages of each task that they name.")
    found_tasks: tuple[FoundTask, ...] = Field(
        description=f"Tasks with at least {FEWEST_PROMPTS} of the first {MAX_PROMPTS:,} different "
        "prompts of messages that name neither a task nor a puzzle."
    )


class _TextCounter:
    """Adds up the figures of one side."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.characters = 0
        self.tokens: Counter[int] = Counter()
        self.cut = 0
        self.full = 0
        self.parts = 0

    def add(self, characters: int, sequence: Sequence[int], *, cut: bool) -> None:
        self.characters += characters
        self.tokens.update(sequence)
        self.cut += cut
        self.full += len(sequence) >= MAX_SEQUENCE_LENGTH
        self.parts += -(-len(sequence) // MAX_SEQUENCE_LENGTH)

    def statistics(self, lines: int) -> TextStatistics:
        return TextStatistics(
            mean_characters=self.characters / lines if lines else None,
            mean_tokens=self.tokens.total() / lines if lines else None,
            token_counts=tuple(self.tokens[token] for token in range(self._vocabulary.size)),
            cut=self.cut,
            full=self.full,
            parts=self.parts,
        )


class _DatasetCounter:
    """Adds up the figures of a file."""

    def __init__(self, converter: Converter) -> None:
        self._converter = converter
        vocabulary = converter.tokenizer.vocabulary
        self._messages = 0
        self._examples = 0
        self._inputs = _TextCounter(vocabulary)
        self._targets = _TextCounter(vocabulary)
        self._difficulties: Counter[Difficulty] = Counter()
        self._categories: Counter[Category] = Counter()
        self._tasks: Counter[str] = Counter()
        self._prompts = _Prompts()
        self.refused: Counter[RejectionReason] = Counter()

    def add_message(self, message: SQEMessage | AcceptedPair, line_index: int) -> None:
        example = self._converter.example_of(message, line_index)
        self._messages += 1
        for side, text, sequence in (
            (self._inputs, message.prompt, example.input_sequence),
            (self._targets, message.completion, example.target_sequence),
        ):
            side.add(len(text), sequence, cut=unread_words(text, sequence) > 0)
        self._difficulties[difficulty_of(len(message.prompt) + len(message.completion))] += 1
        self._categories[message.category or categorize(message.prompt)] += 1
        if message.task is not None:
            self._tasks[message.task] += 1
        elif message.puzzle_id is None:
            self._prompts.add(message.prompt)

    def add_example(self, content: HRMExample) -> None:
        example = self._converter.example_of(content)
        self._examples += 1
        metadata = example.metadata
        self._inputs.add(metadata.prompt_length, example.input_sequence, cut=False)
        self._targets.add(metadata.completion_length, example.target_sequence, cut=False)
        self._difficulties[metadata.difficulty] += 1

    def statistics(self) -> DatasetStatistics:
        lines = self._messages + self._examples
        return DatasetStatistics(
            messages=self._messages,
            examples=self._examples,
            refused=dict(self.refused.most_common()),
            inputs=self._inputs.statistics(lines),
            targets=self._targets.statistics(lines),
            difficulties={name: self._difficulties[name] for name in Difficulty},
            categories={name: self._categories[name] for name in Category},
            tasks=dict(self._tasks.most_common()),
            found_tasks=tuple(self._prompts.tasks()),
        )


class _Prompts:
    """The first different prompts, with a number for each word."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._prompts: dict[Words, None] = {}

    def add(self, prompt: str) -> None:
        if len(self._prompts) < MAX_PROMPTS:
            words = normalised(prompt).split()[:PART_WORDS]
            numbers = (self._numbers.setdefault(word, len(self._numbers)) for word in words)
            self._prompts[tuple(numbers)] = None

    def tasks(self) -> Iterator[FoundTask]:
        words = list(self._numbers)
        for template in find_templates(self._prompts, FEWEST_PROMPTS):
            slots = ("…" if number is None else words[number] for number in template.slots)
            yield FoundTask(template=" ".join(slots), prompts=template.prompts)


def analyze_file(
    source: BinaryIO,
    converter: Converter,
    *,
    reader: LineReader = DEFAULT_READER,
    on_refused: Callable[[RefusedLine], None],
) -> DatasetStatistics:
    """Count the lines of `source`, each a message, a bare pair or a converted example.

    Args:
        source: The JSONL file.
        converter: Turns messages into examples.
        reader: Reads and judges the lines.
        on_refused: Called with each refused line when it is met; later lines still count.
    """
    counter = _DatasetCounter(converter)

    def refuse(line: RefusedLine) -> None:
        counter.refused[line.reason] += 1
        on_refused(line)

    for index, content in reader.contents(source):
        if isinstance(content, RefusedLine):
            refuse(content)
            continue
        try:
            if isinstance(content, HRMExample):
                counter.add_example(content)
            else:
                counter.add_message(content, index)
        except MessageRejected as rejected:
            refuse(RefusedLine.of(index, rejected))
    return counter.statistics()
