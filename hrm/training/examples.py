"""Training examples: read from files, split, and recorded.

Knows messages, lines and which examples may be trained on; nothing of tensors or networks.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from hrm.checkpoint.pairs import AcceptedExample
from hrm.checkpoint.record import Accepted, Answers, TrainingRecord, Variations, pair_hash
from hrm.data.conversion import AcceptedPair, Converter
from hrm.data.files import DEFAULT_READER, RefusedLine
from hrm.data.templates import MAX_PROMPTS
from hrm.data.texts import AcceptedTexts, TextHashes
from hrm.data.variations import Words, standing_alone
from hrm.data.vocabulary import unread_words
from schemas import (
    VOCABULARY_SIZE,
    MessageRejected,
    SQEHRMError,
    SQEMessage,
    TextCheck,
)

MAX_PUZZLES = 2**20
"""Rows of the largest puzzle table: ten times as many as v9 has. With 256 numbers per row it takes
1 GiB, and training holds it twice; one mistyped `puzzle_id` must not demand more."""


class TrainingDataError(SQEHRMError):
    """A file that cannot be used for training."""


class NamedTasks(NamedTuple):
    """The puzzles and tasks that the messages of a file name."""

    tasks: list[str]
    """The tasks, in the order of their first messages."""
    puzzles: int
    """Rows of a puzzle table that has every `puzzle_id`."""
    unnamed: int
    """Messages that name neither a puzzle nor a task."""
    others: list[Words]
    """The prompts of messages that name neither, if they were asked for."""


def named_tasks(path: Path, converter: Converter | None = None) -> NamedTasks:
    """Read the tasks that the messages of the file `path` name.

    With a `converter`, also the prompts of those that have no row by it and name none.

    A line that holds no message is left to `read_examples`, which refuses it, and so is a file that
    cannot be read. The task of a message with a `puzzle_id` is not used, and needs no row.
    """
    tasks: dict[str, None] = {}
    puzzles = unnamed = 0
    others: dict[Words, None] = {}
    with suppress(OSError), path.open("rb") as file:
        for _, content in DEFAULT_READER.messages(file):
            if isinstance(content, RefusedLine):
                continue
            if content.puzzle_id is not None:
                if content.puzzle_id < MAX_PUZZLES:  # others are refused by `read_examples`
                    puzzles = max(puzzles, content.puzzle_id + 1)
            elif content.task is not None:
                tasks[content.task] = None
            else:
                unnamed += 1
                if (
                    converter is not None
                    and len(others) < MAX_PROMPTS
                    and converter.named_puzzle(content) is None
                ):
                    others[converter.words(content.prompt)] = None
    return NamedTasks(list(tasks), puzzles, unnamed, list(others))


def read_examples(
    path: Path, converter: Converter, *, excluded: AbstractSet[str] = frozenset()
) -> list[AcceptedExample]:
    """Read the JSONL file `path` and convert every message to an example.

    No line is skipped: a model trained on part of its file would be taken for one trained on all
    of it.

    Args:
        path: The file of messages and bare pairs.
        converter: Turns messages into examples.
        excluded: Hashes of puzzle and input that must not occur.

    Raises:
        TrainingDataError: A line, which is named, holds no message, a text without words, a puzzle
            beyond the largest table, or an excluded pair; or the file cannot be read or holds no
            message.
    """
    examples = []
    try:
        with path.open("rb") as file:
            for index, content in DEFAULT_READER.messages(file):
                where = f"{path}: line {index + 1}"
                if isinstance(content, RefusedLine):
                    raise TrainingDataError(f"{where}: {content.detail}")
                _check_words(content, where)
                try:
                    example = converter.example_of(content, index)
                except MessageRejected as rejected:
                    raise TrainingDataError(f"{where}: {rejected.detail}") from None
                if example.puzzle_id >= MAX_PUZZLES:
                    raise TrainingDataError(
                        f"{where}: puzzle_id {_short(example.puzzle_id)} is beyond the largest "
                        f"puzzle table: number puzzles from 0 to {MAX_PUZZLES - 1}, or leave it out"
                    )
                pair = pair_hash(example.puzzle_id, example.input_sequence)
                if pair in excluded:
                    raise TrainingDataError(
                        f"{where}: has the puzzle and input tokens of a training message, so it "
                        "is not held out: remove it from one of the files"
                    )
                texts = TextHashes.of(content.prompt, content.completion)
                alternative = isinstance(content, AcceptedPair) and content.alternative
                unread = (
                    unread_words(content.prompt, example.input_sequence),
                    unread_words(content.completion, example.target_sequence),
                )
                hashed = converter.named_puzzle(content) is None
                examples.append(
                    AcceptedExample(index + 1, example, pair, texts, alternative, unread, hashed)
                )
    except OSError as error:
        raise TrainingDataError(f"{path}: cannot be read: {error.strerror}") from None
    if not examples:
        raise TrainingDataError(f"{path} holds no message: give accepted prompts and completions")
    return examples


def _check_words(message: SQEMessage | AcceptedPair, where: str) -> None:
    for field, text in (("prompt", message.prompt), ("completion", message.completion)):
        if text.isspace():
            raise TrainingDataError(
                f"{where}: field '{field}': white space alone, which the model cannot tell from "
                "other white space: give words, or remove the line"
            )


def sharing_rows(examples: Sequence[AcceptedExample]) -> int:
    """Prompts whose hash chose a puzzle row that it also chose for another prompt."""
    rows: defaultdict[int, set[str]] = defaultdict(set)
    for each in examples:
        if each.hashed:
            rows[each.example.puzzle_id].add(each.pair)
    return sum(len(pairs) for pairs in rows.values() if len(pairs) > 1)


def split(
    examples: Sequence[AcceptedExample], share: float, seed: int
) -> tuple[list[AcceptedExample], list[AcceptedExample]]:
    """Split `examples` into those to train on and those to hold out, both in their given order.

    The draw is not stratified: it ignores category and length.

    Args:
        examples: All examples. Pairs that a checkpoint held are trained on, and not drawn.
        share: Share of the distinct pairs of puzzle and input to hold out; at least one pair is.
        seed: Seed of the draw.

    Raises:
        TrainingDataError: Nothing would be left to train on.
    """
    held = {example.pair for example in examples if example.held}
    pairs = sorted({example.pair for example in examples} - held)
    count = max(1, round(share * len(pairs)))
    if count >= len(pairs):
        raise TrainingDataError(
            f"{len(pairs)} distinct messages are too few to hold out {share:g} of them: "
            "give more, or hold out less"
        )
    # Not cryptographic: the same seed has to draw the same examples.
    drawn = set(random.Random(seed).sample(pairs, count))  # noqa: S311
    held_out = [example for example in examples if example.pair in drawn]
    return [example for example in examples if example.pair not in drawn], held_out


def training_record(
    examples: Sequence[AcceptedExample],
    answers: Answers | None = None,
    *,
    vocabulary_size: int = VOCABULARY_SIZE,
    prompt_noise: int = 0,
) -> TrainingRecord:
    """The record of `examples` that a checkpoint trained on them keeps.

    Args:
        examples: The training examples.
        answers: The puzzle rows that hold the pairs with several accepted targets.
        vocabulary_size: Number of tokens of the conversion.
        prompt_noise: Most words of a prompt that training changes.
    """
    tokens: Counter[int] = Counter()
    puzzles = {each.pair: each.example.puzzle_id for each in examples}
    prompts = Counter(puzzles.values())
    lengths: defaultdict[str, set[int]] = defaultdict(set)
    for each in examples:
        target = each.example.target_sequence
        tokens.update(target)
        lengths[each.pair].add(len(target))
    return TrainingRecord(
        pair_hashes=frozenset(lengths),
        target_token_counts=tuple(tokens[token] for token in range(vocabulary_size)),
        accepted=Accepted(
            target_lengths={pair: tuple(sorted(found)) for pair, found in lengths.items()},
            puzzles=frozenset(prompts),
            texts=AcceptedTexts.of(each.texts for each in examples),
            prompt_counts={puzzle: count for puzzle, count in prompts.items() if count > 1},
            answers=answers or {},
            variations=_variations(examples, prompt_noise) if prompt_noise else None,
        ),
    )


def _variations(examples: Sequence[AcceptedExample], changes: int) -> Variations:
    inputs = {(each.example.puzzle_id, each.example.input_sequence) for each in examples}
    alone = standing_alone(((puzzle, tokens[1:-1]) for puzzle, tokens in inputs), changes)
    prompts: defaultdict[int, list[tuple[int, ...]]] = defaultdict(list)
    for puzzle, tokens in inputs:
        if (puzzle, tokens[1:-1]) in alone:
            prompts[puzzle].append(tokens)
    return Variations(
        changes=changes, prompts={puzzle: tuple(found) for puzzle, found in prompts.items()}
    )


def completed_record(record: TrainingRecord, path: Path, converter: Converter) -> TrainingRecord:
    """The record of version 2 for a checkpoint that has `record`, of version 1.

    Args:
        record: The checkpoint's record.
        path: JSONL file of exactly the messages that the checkpoint was trained on.
        converter: Turns messages into examples as in that training.

    Raises:
        TrainingDataError: The messages are not the recorded ones, or cannot be read.
    """
    examples = recorded_examples(record, path, converter)
    return training_record(examples, vocabulary_size=converter.tokenizer.vocabulary.size)


def recorded_examples(
    record: TrainingRecord, path: Path, converter: Converter
) -> list[AcceptedExample]:
    """Read the examples that a checkpoint with `record` was trained on.

    Args:
        record: The checkpoint's record.
        path: JSONL file of exactly the messages that the checkpoint was trained on.
        converter: Turns messages into examples as in that training.

    Raises:
        TrainingDataError: The messages are not the recorded ones, or cannot be read.
    """
    examples = read_examples(path, converter)
    tokens: Counter[int] = Counter()
    for each in examples:
        target = each.example.target_sequence
        tokens.update(target)
        if each.pair not in record.pair_hashes:
            raise TrainingDataError(
                f"{path}: line {each.line}: not among the recorded training pairs: give the file "
                "that the checkpoint was trained on, without held-out messages"
            )
        if record.accepted is not None and not (
            record.accepted.texts.check(each.texts) is TextCheck.SAME
            and record.accepts_target(each.pair, target)
        ):
            raise TrainingDataError(
                f"{path}: line {each.line}: another completion than the recorded one: give the "
                "file as it was when the checkpoint was trained, without lines that were left out"
            )
    missing = len(record.pair_hashes) - len({each.pair for each in examples})
    if missing:
        raise TrainingDataError(
            f"{path}: lacks {missing} of the {len(record.pair_hashes)} recorded training pairs: "
            "give the whole file that the checkpoint was trained on"
        )
    vocabulary_size = converter.tokenizer.vocabulary.size
    if tuple(tokens[token] for token in range(vocabulary_size)) != record.target_token_counts:
        raise TrainingDataError(
            f"{path}: its completions have other tokens than the recorded ones: give the file as "
            "it was when the checkpoint was trained"
        )
    return examples


def _short(number: int) -> str:
    digits = str(number)
    return digits if len(digits) <= len(str(MAX_PUZZLES)) + 3 else f"{digits[:8]}…"
