"""The accepted pairs that a checkpoint was trained on, as tokens and hashes and without any text.

A checkpoint folder holds them in `accepted.pairs`, so that training further can replay them and a
promotion can tell what would be lost; a worker tests itself with a few of them. Knows examples,
hashes and tensors; nothing of weights, but for the digest of those by which the pairs were found
solved. `hrm.checkpoint.solved` names the parts of the file that are read without torch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hrm.checkpoint.names import CheckpointError
from hrm.checkpoint.record import Answers, pair_hash, target_hash
from hrm.checkpoint.solved import (
    HEADER,
    TEXT_HASHES,
    PairsHeader,
    flags_of,
    unusable_pairs,
)
from hrm.data.conversion import difficulty_of, solution_steps
from hrm.data.files import replaced_file
from hrm.data.texts import HASH_CHARACTERS, TextHashes
from schemas import (
    MAX_SEQUENCE_LENGTH,
    MAX_TARGET_LENGTH,
    ExampleMetadata,
    HaltedBy,
    HRMExample,
)

_HASH_BYTES = HASH_CHARACTERS // 2


@dataclass(frozen=True, slots=True)
class AcceptedExample:
    """The example of an accepted message; of its texts, only the hashes are kept."""

    line: int
    """Number of its line in the file, from 1; 0 if a checkpoint held it."""
    example: HRMExample
    pair: str
    """`pair_hash` of its puzzle and input: links it with the training record."""
    texts: TextHashes
    alternative: bool = False
    """Whether its line declares the completion as accepted beside those of other lines."""
    unread: tuple[int, int] = (0, 0)
    """Words of prompt and completion beyond those that the model reads."""
    hashed: bool = False
    """Whether the message names no puzzle, so that a hash of its prompt chose one."""

    @property
    def target(self) -> str:
        """`target_hash` of its target; together with `pair` it names what the model holds."""
        return target_hash(self.example.target_sequence)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for examples that are one accepted pair: equal in puzzle, tokens and texts."""
        example = self.example
        return example.puzzle_id, example.input_sequence, example.target_sequence, self.texts

    @property
    def held(self) -> bool:
        """Whether a checkpoint held it before."""
        return self.line == 0


def first_of_each(examples: Sequence[AcceptedExample]) -> list[int]:
    """Numbers of the examples of which no equal one comes before: those of `AcceptedPairs.of`."""
    numbers: dict[tuple[object, ...], int] = {}
    for number, each in enumerate(examples):
        numbers.setdefault(each.key, number)
    return list(numbers.values())


def with_answer_rows(examples: Iterable[AcceptedExample], answers: Answers) -> list[HRMExample]:
    """The examples, each with the puzzle row that holds its target."""
    return [_with_row(each, answers) for each in examples]


def _with_row(accepted: AcceptedExample, answers: Answers) -> HRMExample:
    rows = answers.get(accepted.pair)
    if rows is None:
        return accepted.example
    return accepted.example.model_copy(update={"puzzle_id": rows[accepted.target]})


@dataclass(frozen=True, eq=False)
class AcceptedPairs:
    """N accepted examples, each once, in the order in which training takes them.

    `len()` counts them; iteration gives each as an `AcceptedExample`, made when it is asked for.
    """

    vocabulary: int
    """Number of tokens of the conversion."""
    columns: Mapping[str, Tensor]
    """The tensors of `_COLUMNS`, as the file holds them."""
    solved_by: str | None = None
    """Digest of the weights that `solved` is of."""
    solved: Mapping[HaltedBy, Tensor] | None = None
    """By halting rule, bool (N,): whether the weights `solved_by` solve each, all parts of it. None
    if this was not measured. Ask `solved_with`, which does not trust flags of other weights."""

    @classmethod
    def of(cls, examples: Iterable[AcceptedExample], vocabulary: int) -> Self:
        """The pairs with these examples. Equal ones are one, whatever their lines.

        Args:
            examples: Accepted examples; several of one pair may have different targets.
            vocabulary: Number of tokens of their conversion.
        """
        held: dict[tuple[object, ...], AcceptedExample] = {}
        for each in examples:
            first = held.setdefault(each.key, each)
            if each.alternative and not first.alternative:
                held[each.key] = replace(first, alternative=True)
        return cls(vocabulary, _columns(list(held.values())))

    def __len__(self) -> int:
        return len(self.columns["puzzle_ids"])

    def __iter__(self) -> Iterator[AcceptedExample]:
        columns = {name: column.tolist() for name, column in self.columns.items()}
        inputs, targets = (
            _cut(columns[f"{side}_tokens"], columns[f"{side}_lengths"])
            for side in ("input", "target")
        )
        hashes = self.columns[TEXT_HASHES].contiguous().numpy().tobytes().hex()
        for number, (puzzle, tokens, target) in enumerate(
            zip(columns["puzzle_ids"], inputs, targets, strict=True)
        ):
            start = number * len(TextHashes._fields) * HASH_CHARACTERS
            prompt_length, completion_length = columns["text_lengths"][number]
            unread_prompt, unread_completion = columns["unread_words"][number]
            # The tensors were checked as a whole, so that nothing is left for pydantic to find.
            example = HRMExample.model_construct(
                puzzle_id=puzzle,
                input_sequence=tokens,
                target_sequence=target,
                solution_steps=solution_steps(min(len(tokens), len(target))),
                metadata=ExampleMetadata.model_construct(
                    prompt_length=prompt_length,
                    completion_length=completion_length,
                    difficulty=difficulty_of(prompt_length + completion_length),
                ),
            )
            yield AcceptedExample(
                line=0,
                example=example,
                pair=pair_hash(puzzle, tokens),
                texts=TextHashes(
                    *(
                        hashes[at : at + HASH_CHARACTERS]
                        for at in range(start, start + 3 * HASH_CHARACTERS, HASH_CHARACTERS)
                    )
                ),
                alternative=columns["alternative"][number],
                unread=(unread_prompt, unread_completion),
                hashed=columns["hashed"][number],
            )

    def pair_hashes(self) -> set[str]:
        """The hashes that the training record of these pairs has."""
        inputs = _cut(self.columns["input_tokens"].tolist(), self.columns["input_lengths"].tolist())
        puzzles = self.columns["puzzle_ids"].tolist()
        return {pair_hash(*each) for each in zip(puzzles, inputs, strict=True)}

    def union(self, other: Self) -> Self:
        """These pairs, and behind them those of `other` that are not among them.

        Nothing is known of what solves them, because no weights were trained on both.
        """
        return type(self).of([*self, *other], self.vocabulary)

    def measured(self, solved: Mapping[HaltedBy, Tensor], digest: str) -> Self:
        """The same pairs with what the weights `digest` solve.

        Args:
            solved: By halting rule, bool (N,): whether each is solved, all parts of it.
            digest: The checkpoint's digest.
        """
        flags = {rule: solved[rule].bool().cpu() for rule in HaltedBy}
        if any(each.shape != (len(self),) for each in flags.values()):
            raise ValueError(f"one flag for each of {len(self)} pairs is needed")
        return replace(self, solved=flags, solved_by=digest)

    def solved_with(self, digest: str) -> Mapping[HaltedBy, Tensor] | None:
        """`solved`, if it is of the weights `digest`; None if unknown."""
        return self.solved if self.solved_by == digest else None

    @property
    def counts(self) -> dict[HaltedBy, int] | None:
        """By halting rule, how many are solved; None if unknown."""
        if self.solved is None:
            return None
        return {rule: int(self.solved[rule].sum()) for rule in (HaltedBy.MAX_STEPS, HaltedBy.Q)}

    def write(self, file: Path) -> None:
        """Write the file atomically. Raises `CheckpointError` if it cannot be written."""
        tensors = {name: column.contiguous() for name, column in self.columns.items()}
        if self.solved is not None:
            tensors |= {flags_of(rule): self.solved[rule].to(torch.uint8) for rule in HaltedBy}
        header = PairsHeader(
            vocabulary=self.vocabulary,
            solved_by=None if self.solved is None else self.solved_by,
        )
        content = save(tensors, {HEADER: header.model_dump_json()})
        try:
            with replaced_file(file) as sink:
                sink.write(content)
        except OSError as error:
            raise CheckpointError(
                f"{file}: cannot be written ({error.strerror}): make room, or choose another folder"
            ) from None

    @classmethod
    def read(cls, file: Path, vocabulary: int) -> Self | None:
        """Read the file; None if there is none.

        Args:
            file: The `accepted.pairs` of a checkpoint folder.
            vocabulary: Number of tokens of the checkpoint's conversion.

        Raises:
            CheckpointError: The file is damaged, of another version, or of another conversion.
        """
        try:
            with safe_open(file, framework="pt") as stored:
                header = PairsHeader.model_validate_json((stored.metadata() or {}).get(HEADER, ""))
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValidationError):
            raise unusable_pairs(file, "damaged, or of another version") from None
        if problem := _problem(tensors, header, vocabulary):
            raise unusable_pairs(file, problem)
        columns = {name: tensors[name] for name in _COLUMNS}
        if header.solved_by is None:
            return cls(vocabulary, columns)
        flags = {rule: tensors[flags_of(rule)].bool() for rule in HaltedBy}
        return cls(vocabulary, columns, header.solved_by, flags)


_COLUMNS: Mapping[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "puzzle_ids": (torch.int64, ()),
    "input_lengths": (torch.int32, ()),
    "target_lengths": (torch.int32, ()),
    TEXT_HASHES: (torch.uint8, (len(TextHashes._fields), _HASH_BYTES)),
    "text_lengths": (torch.int32, (2,)),
    "unread_words": (torch.int32, (2,)),
    "alternative": (torch.bool, ()),
    "hashed": (torch.bool, ()),
    "input_tokens": (torch.uint16, ()),
    "target_tokens": (torch.uint16, ()),
}
"""Dtype of each column and the shape of an entry. All have N entries but for the tokens, which are
those of all examples one after the other: whole targets, before they are cut into parts.
`text_hashes` are those of `TextHashes`; `text_lengths` are characters of prompt and completion."""

_SHORTEST = 2
"""Tokens of the shortest sequence: a start and an end."""

_LONGEST = {"input": MAX_SEQUENCE_LENGTH, "target": MAX_TARGET_LENGTH}


def _columns(held: Sequence[AcceptedExample]) -> dict[str, Tensor]:
    examples = [each.example for each in held]
    hashes = bytearray.fromhex("".join(text for each in held for text in each.texts))
    lists: dict[str, Sequence[object]] = {
        "puzzle_ids": [each.puzzle_id for each in examples],
        "input_lengths": [len(each.input_sequence) for each in examples],
        "target_lengths": [len(each.target_sequence) for each in examples],
        TEXT_HASHES: hashes,
        "text_lengths": [
            (each.metadata.prompt_length, each.metadata.completion_length) for each in examples
        ],
        "unread_words": [each.unread for each in held],
        "alternative": [each.alternative for each in held],
        "hashed": [each.hashed for each in held],
        "input_tokens": [token for each in examples for token in each.input_sequence],
        "target_tokens": [token for each in examples for token in each.target_sequence],
    }
    return {
        name: torch.tensor(values, dtype=_COLUMNS[name][0]).view(-1, *_COLUMNS[name][1])
        for name, values in lists.items()
    }


def _cut(tokens: list[int], lengths: list[int]) -> Iterator[tuple[int, ...]]:
    """The sequences whose tokens stand one after the other."""
    end = 0
    for length in lengths:
        start, end = end, end + length
        yield tuple(tokens[start:end])


def _problem(tensors: Mapping[str, Tensor], header: PairsHeader, vocabulary: int) -> str | None:
    """Why the content of a file cannot be the accepted pairs of a checkpoint, in words."""
    if header.vocabulary != vocabulary:
        return f"for {header.vocabulary} tokens, but the checkpoint's conversion has {vocabulary}"
    expected = dict(_COLUMNS)
    if header.solved_by is not None:
        expected |= {flags_of(rule): (torch.uint8, ()) for rule in HaltedBy}
    if tensors.keys() != expected.keys():
        return f"not just what belongs there: {', '.join(sorted(tensors.keys() ^ expected.keys()))}"
    count = len(tensors["puzzle_ids"])
    for name, (dtype, entry) in expected.items():
        side, _, what = name.partition("_")
        length = int(tensors[f"{side}_lengths"].sum()) if what == "tokens" else count
        if tensors[name].dtype != dtype or tensors[name].shape != (length, *entry):
            return f"{name} is not {dtype} of shape {(length, *entry)}"
    return _value_problem(tensors, vocabulary) if count else None


def _value_problem(columns: Mapping[str, Tensor], vocabulary: int) -> str | None:
    for side, longest in _LONGEST.items():
        lengths = columns[f"{side}_lengths"]
        if lengths.amin() < _SHORTEST or lengths.amax() > longest:
            return f"a length in {side}_lengths is not from {_SHORTEST} to {longest}"
        # torch finds no largest of 16 unsigned bits.
        largest = int(columns[f"{side}_tokens"].int().amax())
        if largest >= vocabulary:
            return f"token {largest}, but the checkpoint's conversion has {vocabulary}"
    return "a negative puzzle" if columns["puzzle_ids"].amin() < 0 else None
