"""The predictors that a network has to beat: guesses, and tables of the training pairs.

Knows training pairs and the token sequences that follow from them without a network. Counting
targets takes constant memory; tables of pairs are in `hrm.evaluation.lookup`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from hrm.evaluation.scoring import commonest_token
from schemas import MAX_SEQUENCE_LENGTH, HRMExample


class Baseline(Protocol):
    """A predictor without a network."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def fitted_on(self) -> str:
        """Description of the training pairs it was made from."""

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """The guess, if it is the same for every example."""

    def predict(self, example: HRMExample) -> Sequence[Sequence[int]]:
        """Predict the target from puzzle and input; of the target, only the length may be used.

        There may be several predictions, if several answers were accepted: the nearest counts, as
        for a network. One with another length than the target's is not solved.
        """


@dataclass(frozen=True)
class Guess:
    """A guess that never looks at the input: the same for every example."""

    name: str
    fitted_on: str
    tokens: tuple[int, ...]
    """A token for each of 100 positions, or for more if a training target was longer."""

    def predict(self, example: HRMExample) -> Sequence[Sequence[int]]:
        """The first tokens of the guess, as many as the target has: a network's are cut, too."""
        return (self.tokens[: len(example.target_sequence)],)


def commonest(
    target_token_counts: Sequence[int], fitted_on: str, length: int = MAX_SEQUENCE_LENGTH
) -> Guess:
    """Guess the commonest training token at `length` positions. The smallest id wins a tie."""
    token = commonest_token(target_token_counts)
    return Guess("commonest token", fitted_on, (token,) * length)


class TargetCounter:
    """Counts training targets and derives baselines from them.

    Args:
        vocabulary_size: Number of tokens.
    """

    def __init__(self, vocabulary_size: int) -> None:
        self.targets = 0
        self._tokens = [0] * vocabulary_size
        self._at: list[Counter[int]] = [Counter() for _ in range(MAX_SEQUENCE_LENGTH)]
        self._after: list[Counter[int]] = [Counter() for _ in range(vocabulary_size)]

    def add(self, target: Sequence[int]) -> None:
        """Count one target sequence."""
        self.targets += 1
        self._at += (Counter() for _ in range(len(target) - len(self._at)))
        for position, token in enumerate(target):
            self._tokens[token] += 1
            self._at[position][token] += 1
        for previous, token in pairwise(target):
            self._after[previous][token] += 1

    def baselines(self, fitted_on: str) -> tuple[Guess, ...]:
        """The commonest token, the commonest by position, and bigram. The smallest id wins a tie.

        If the training targets say nothing (a position beyond all of them, a token that nothing
        followed), the guess is the commonest token. Bigram begins with the commonest first token
        and goes on with the commonest successor of its own last guess, since no predictor is given
        the true previous token here.
        """
        overall = commonest(self._tokens, fitted_on, len(self._at))
        default = overall.tokens[0]
        by_position = tuple(_commonest_or(default, counts) for counts in self._at)
        chain = [by_position[0]]
        while len(chain) < len(self._at):
            chain.append(_commonest_or(default, self._after[chain[-1]]))
        return (
            overall,
            Guess("commonest by position", fitted_on, by_position),
            Guess("bigram", fitted_on, tuple(chain)),
        )


def _commonest_or(default: int, counts: Mapping[int, int]) -> int:
    return min(counts, key=lambda token: (-counts[token], token), default=default)
