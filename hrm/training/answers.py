"""Several accepted answers to one prompt: which lines contradict each other, and who holds which.

Knows accepted examples and puzzle rows; nothing of files or networks. To the model, a prompt is its
pair: puzzle and input tokens. A network gives one target for a pair, so each further accepted
target is trained with a puzzle row of its own, behind all others.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from hrm.checkpoint.pairs import AcceptedExample
from hrm.checkpoint.record import Answers
from hrm.training.examples import TrainingDataError

MAX_NAMED = 10
"""Contradictions that are named one by one: enough to see how they came about."""


class Contradictions(StrEnum):
    """How to take lines that give one prompt different completions and do not declare it."""

    REFUSE = "refuse"
    """Train on nothing."""
    FIRST = "first"
    """Accept the completion of the first such line, and leave out the lines with another one."""
    LAST = "last"
    """Accept the completion of the last such line, and leave out the lines with another one."""
    ALL = "all"
    """Accept all completions, as if they were declared."""


class Contradiction(NamedTuple):
    """Two examples with one pair and completions of different normal forms."""

    first: AcceptedExample
    """A line, or what the checkpoint holds that training starts from."""
    second: AcceptedExample
    """A line."""

    def __str__(self) -> str:
        prompts = "one prompt"
        if self.first.texts.prompt != self.second.texts.prompt:
            prompts = "two prompts that the model cannot tell apart (same puzzle, same tokens)"
        lines = f"lines {self.first.line} and {self.second.line}"
        if self.first.held:
            lines = f"line {self.second.line} and a pair that the checkpoint holds"
        return f"{lines}: two completions for {prompts}"


class ContradictionError(TrainingDataError):
    """Lines of a file contradict each other, or what a checkpoint holds.

    Attributes:
        named: A line of text for each contradiction, the first `MAX_NAMED`, and for their rest.
    """

    def __init__(self, path: Path, found: Sequence[Contradiction]) -> None:
        super().__init__(
            f"{path}: contradicting completions for one prompt in {len(found):,} lines, the first "
            f'is line {found[0].second.line}: add "alternative": true to pairs that are accepted '
            "beside others, or choose with --contradictions first, last or all"
        )
        more = [f"{path}: and {len(found) - MAX_NAMED:,} more"] if len(found) > MAX_NAMED else []
        self.named = (*(f"{path}: {each}" for each in found[:MAX_NAMED]), *more)


def check_contradictions(examples: Sequence[AcceptedExample], path: Path) -> None:
    """Raise `ContradictionError` if examples of the file `path` contradict each other.

    Examples that a checkpoint held may stand before those of the file.
    """
    if found := find_contradictions(examples):
        raise ContradictionError(path, found)


def find_contradictions(examples: Sequence[AcceptedExample]) -> list[Contradiction]:
    """Each line that contradicts an earlier one, with the first line of its pair.

    A completion that some line of the pair declares an alternative contradicts none, and neither
    does one that a checkpoint held.
    """
    held = {(each.pair, _answer(each)) for each in examples if each.held}
    firsts: dict[str, AcceptedExample] = {}
    found = []
    for each in _undeclared(examples):
        first = firsts.setdefault(each.pair, each)
        if _answer(first) != _answer(each) and (each.pair, _answer(each)) not in held:
            found.append(Contradiction(first, each))
    return found


def resolve(examples: Sequence[AcceptedExample], choice: Contradictions) -> list[AcceptedExample]:
    """The examples that are left if contradictions are taken as `choice` says.

    What a checkpoint held stands before all lines: `first` keeps it, and `last` keeps the last
    line instead.
    """
    if choice not in {Contradictions.FIRST, Contradictions.LAST}:
        return list(examples)
    kept: dict[str, set[str]] = {each.second.pair: set() for each in find_contradictions(examples)}
    undeclared = [each for each in _undeclared(examples) if each.pair in kept]
    for each in undeclared:
        if choice is Contradictions.LAST:
            kept[each.pair] = {_answer(each)}
        elif each.held or not kept[each.pair]:
            kept[each.pair].add(_answer(each))
    left_out = {each.key for each in undeclared if _answer(each) not in kept[each.pair]}
    return [each for each in examples if each.key not in left_out]


def answer_rows(
    examples: Sequence[AcceptedExample], first_free: int, earlier: Answers
) -> dict[str, dict[str, int]]:
    """The puzzle rows of the targets of every pair that has several: `Answers`.

    A target that is replayed from the row of its puzzle stays there. Otherwise the first target
    of a pair, of those that are no alternatives if there are any, is in that row. Each further one
    gets a row of its own. Equal tokens are one target, whatever the texts.

    Args:
        examples: The examples to train on.
        first_free: The first row beyond all puzzles and all rows in use.
        earlier: The answers of the checkpoint that training starts from: a target that it holds in
            another row than a puzzle's stays there.
    """

    def order(each: AcceptedExample) -> tuple[bool, bool, bool]:
        row = earlier.get(each.pair, {}).get(each.target)
        stays = each.held and row == each.example.puzzle_id
        return not stays, not each.held, each.alternative

    targets: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for each in sorted(examples, key=order):  # stable
        targets[each.pair].setdefault(each.target, each.example.puzzle_id)
    puzzles = {each.example.puzzle_id for each in examples}
    rows = {pair: found for pair, found in targets.items() if len(found) > 1}
    for pair, found in rows.items():
        for target in list(found)[1:]:
            row = earlier.get(pair, {}).get(target)
            if row is None or row in puzzles:
                row, first_free = first_free, first_free + 1
            found[target] = row
    return rows


def _undeclared(examples: Sequence[AcceptedExample]) -> Iterator[AcceptedExample]:
    """The examples whose completion no line of their pair declares an alternative."""
    declared = {(each.pair, _answer(each)) for each in examples if each.alternative}
    return (each for each in examples if (each.pair, _answer(each)) not in declared)


def _answer(accepted: AcceptedExample) -> str:
    return accepted.texts.normalised_completion
