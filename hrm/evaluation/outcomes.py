"""Outcomes of several predictors on the same examples, and what tells each two of them apart.

Knows examples, and which of their tokens a predictor has right; nothing of checkpoints, inference
or files. Memory grows with the distinct examples: about 250 bytes for each, and 5 more for each
predictor. 100,000 messages and two predictors took 24 MB, and 54 MB during their comparison.
"""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from hrm.evaluation.paired import bootstrap_interval, holm, mcnemar
from schemas import HaltedBy, HRMExample

MAX_NAMES = 1000
"""Most names of messages in each list of a comparison. A report stays readable by programs, and two
checkpoints that differ on more messages than this need no list to be told apart."""

_KEY_BYTES = 16


class DistinctExamples:
    """Distinct examples, numbered from 0 in the order in which they first occur.

    Equal examples (puzzle, input and target) count as one. A predictor answers them equally, so a
    repeat tells nothing that the first did not, and must not look like more evidence.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        """The name of the message in which each first occurred."""
        self._positions: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.names)

    def position(self, forms: Iterable[HRMExample], name: str) -> int:
        """The number of an example, which is a new one if it did not occur before.

        Args:
            forms: The example as each predictor reads it. Predictors that convert messages in
                different ways have different forms, and all of them have to be equal.
            name: What to call the message.
        """
        digest = hashlib.blake2b(digest_size=_KEY_BYTES)
        for form in forms:
            digest.update(f"{form.puzzle_id} {form.input_sequence} {form.target_sequence}".encode())
        position = self._positions.setdefault(digest.digest(), len(self.names))
        if position == len(self.names):
            self.names.append(name)
        return position


class OutcomeTable(NamedTuple):
    """Outcomes of one predictor as tensors, one row per distinct example."""

    name: str
    solved: Tensor
    """bool (N,)."""
    tokens: Tensor
    """int64 (N, 2): correct tokens and target tokens; both are 0 without an outcome."""

    @property
    def answered(self) -> Tensor:
        """Whether each example has an outcome: bool (N,)."""
        return self.tokens[:, 1] > 0


class Outcomes:
    """Outcomes of one predictor, by the numbers of distinct examples.

    Args:
        name: What to call the predictor.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.repeats = 0
        """Outcomes of examples that had one before. They are not counted."""
        self._solved = bytearray()
        self._correct = array("H")
        self._targets = array("H")

    def add(self, position: int, *, solved: bool, correct: int, targets: int) -> None:
        """Count the outcome of the example with number `position`: `correct` of `targets` tokens.

        Only the first outcome of an example counts.
        """
        missing = position + 1 - len(self._targets)
        if missing > 0:
            self._solved.extend(bytes(missing))
            self._correct.extend([0] * missing)
            self._targets.extend([0] * missing)
        if self._targets[position]:
            self.repeats += 1
            return
        self._solved[position] = solved
        self._correct[position] = correct
        self._targets[position] = targets

    def totals(self) -> tuple[int, float]:
        """The number of solved examples, and correct tokens / target tokens, of at least one."""
        return sum(self._solved), sum(self._correct) / sum(self._targets)

    def table(self, length: int) -> OutcomeTable:
        """The outcomes of the first `length` examples."""
        rows = zip(self._solved, self._correct, self._targets, strict=True)
        filled = [*rows, *[(0, 0, 0)] * (length - len(self._targets))]
        values = torch.tensor(filled, dtype=torch.int64).reshape(length, 3)
        return OutcomeTable(self.name, values[:, 0].bool(), values[:, 1:])


class PairedFigures(BaseModel):
    """Two predictors on the same distinct examples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    halting: HaltedBy
    first: str
    second: str
    examples: int = Field(description="Distinct examples that both answered.")
    first_solved: int
    second_solved: int
    only_first: int = Field(description="Examples that only the first solved.")
    only_second: int = Field(description="Examples that only the second solved.")
    p_value: float = Field(description="Exact two-sided McNemar test of these two counts.")
    adjusted_p_value: float = Field(
        description="After Holm's correction for all pairs under this halting rule."
    )
    token_difference: float = Field(
        description="Token accuracy (correct tokens / target tokens) of the first less the second."
    )
    token_low: float | None = Field(
        description="Lower end of its 95 % bootstrap interval over examples. Null if all training "
        "pairs of both, and nothing else, were counted: then there is nothing to estimate."
    )
    token_high: float | None = Field(description="Upper end of the interval; null if `low` is.")
    only_first_names: tuple[str, ...] = Field(
        description=f"Messages that only the first solved: the first {MAX_NAMES} of them."
    )
    only_second_names: tuple[str, ...]

    @property
    def names(self) -> tuple[str, str]:
        """The names of both."""
        return self.first, self.second

    def turned(self) -> Self:
        """The same with first and second exchanged."""
        return self.model_copy(
            update={
                "first": self.second,
                "second": self.first,
                "first_solved": self.second_solved,
                "second_solved": self.first_solved,
                "only_first": self.only_second,
                "only_second": self.only_first,
                "token_difference": -self.token_difference,
                "token_low": None if self.token_high is None else -self.token_high,
                "token_high": None if self.token_low is None else -self.token_low,
                "only_first_names": self.only_second_names,
                "only_second_names": self.only_first_names,
            }
        )


def compare_outcomes(
    outcomes: Sequence[Outcomes],
    examples: DistinctExamples,
    halting: HaltedBy,
    counted: Sequence[bool] | None = None,
) -> list[PairedFigures]:
    """Compare each two of `outcomes`, under one halting rule.

    Examples that one of the two has not answered are left out. Two predictors without any common
    example are not compared.

    Args:
        outcomes: The outcomes of all predictors.
        examples: The examples that they are numbered by.
        halting: The halting rule.
        counted: For each predictor, whether the examples are all its training pairs and no others.
    """
    tables = [each.table(len(examples)) for each in outcomes]
    whole = counted or [False] * len(outcomes)
    pairs = []
    for (first, first_whole), (second, second_whole) in combinations(
        zip(tables, whole, strict=True), 2
    ):
        common = (first.answered & second.answered).nonzero()[:, 0]
        if len(common):
            names = [examples.names[position] for position in common.tolist()]
            estimate = not (first_whole and second_whole)
            pairs.append(_pair(first, second, common, names, halting, estimate=estimate))
    adjusted = holm([pair.p_value for pair in pairs])
    return [
        pair.model_copy(update={"adjusted_p_value": p})
        for pair, p in zip(pairs, adjusted, strict=True)
    ]


def _pair(
    first: OutcomeTable,
    second: OutcomeTable,
    common: Tensor,
    names: Sequence[str],
    halting: HaltedBy,
    *,
    estimate: bool,
) -> PairedFigures:
    """Compare two predictors on the examples `common`, int64, whose messages are `names`."""
    first_solved, second_solved = first.solved[common], second.solved[common]
    first_tokens, second_tokens = first.tokens[common], second.tokens[common]
    only_first, only_second = first_solved & ~second_solved, second_solved & ~first_solved
    p_value = mcnemar(int(only_first.sum()), int(only_second.sum()))
    low, high = bootstrap_interval(first_tokens, second_tokens) if estimate else (None, None)
    return PairedFigures(
        halting=halting,
        first=first.name,
        second=second.name,
        examples=len(common),
        first_solved=int(first_solved.sum()),
        second_solved=int(second_solved.sum()),
        only_first=int(only_first.sum()),
        only_second=int(only_second.sum()),
        p_value=p_value,
        adjusted_p_value=p_value,
        token_difference=_accuracy(first_tokens) - _accuracy(second_tokens),
        token_low=low,
        token_high=high,
        only_first_names=_chosen(only_first, names),
        only_second_names=_chosen(only_second, names),
    )


def _accuracy(tokens: Tensor) -> float:
    correct, targets = tokens.sum(0).tolist()
    return float(correct / targets)


def _chosen(rows: Tensor, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(names[row] for row in rows.nonzero()[:MAX_NAMES, 0].tolist())
