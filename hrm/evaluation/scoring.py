"""Comparison of a prediction with its target. Knows two token sequences; no model and no text."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from schemas import FailurePattern

NEAR_MISS_SHARE = 0.05
"""Largest share of wrong tokens in a near miss."""

SHIFTED_SIMILARITY = 0.8
"""Smallest edit similarity of a shift."""


@dataclass(frozen=True)
class Score:
    """The figures of one prediction."""

    correct_tokens: int
    target_tokens: int
    edit_similarity: float
    """1 - Levenshtein distance / target length, at least 0."""
    failure_pattern: FailurePattern | None
    confusions: Mapping[tuple[int, int], int]
    """How often each pair (target, predicted) of different tokens occurred."""

    @property
    def solved(self) -> bool:
        """Whether every target token is right, and the target has an accepted length."""
        return self.failure_pattern is None

    @property
    def token_accuracy(self) -> float:
        """Share of the target's tokens that are right at their positions."""
        return self.correct_tokens / self.target_tokens


def commonest_token(counts: Sequence[int]) -> int:
    """The token with the largest count; the smallest id wins a tie."""
    return max(range(len(counts)), key=counts.__getitem__)


def score(
    predicted: Sequence[int],
    target: Sequence[int],
    *,
    end: int,
    baseline_token: int | None,
    length_accepted: bool = True,
) -> Score:
    """Compare `predicted`, cut to the target's length, with `target`.

    Args:
        predicted: Predicted tokens, at least as many as the target has.
        target: Target tokens, at least one.
        end: The vocabulary's end token.
        baseline_token: The commonest token of the training targets. None if they are not recorded;
            then the commonest token of this target takes its place.
        length_accepted: False if the prompt is known and no accepted target of it has this length.
            A target that was cut just before a word with the token of the end has the beginning of
            an accepted one's tokens, all of them, and only its length tells.
    """
    predicted = predicted[: len(target)]
    if tuple(predicted) == tuple(target):  # as in most messages of an agent that behaves
        pattern = None if length_accepted else FailurePattern.WRONG_LENGTH
        return Score(len(target), len(target), 1.0, pattern, {})
    pairs = list(zip(target, predicted, strict=True))
    correct = sum(expected == given for expected, given in pairs)
    # Not 1 - distance / length, which is a rounding error above `correct / length` if the edit
    # distance equals the number of wrong tokens. The distance is at most the common length.
    similarity = (len(target) - Levenshtein.distance(predicted, target)) / len(target)
    return Score(
        correct_tokens=correct,
        target_tokens=len(target),
        edit_similarity=similarity,
        failure_pattern=_failure_pattern(pairs, correct, similarity, end, baseline_token),
        confusions=Counter(pair for pair in pairs if pair[0] != pair[1]),
    )


def _failure_pattern(
    pairs: list[tuple[int, int]],
    correct: int,
    similarity: float,
    end: int,
    baseline_token: int | None,
) -> FailurePattern:
    """The first pattern that applies to a wrong prediction, in the order of `FailurePattern`."""
    length = len(pairs)
    wrong = length - correct
    if wrong <= max(1, NEAR_MISS_SHARE * length):
        return FailurePattern.NEAR_MISS
    if similarity >= SHIFTED_SIMILARITY and similarity > correct / length:
        return FailurePattern.SHIFTED
    target, predicted = zip(*pairs, strict=True)
    if _first(end, predicted) != _first(end, target):
        return FailurePattern.WRONG_LENGTH
    counts = Counter(target)
    baseline = counts[baseline_token] if baseline_token is not None else max(counts.values())
    if correct <= baseline:
        return FailurePattern.NO_SIGNAL
    first_wrong = next(index for index, (expected, given) in enumerate(pairs) if expected != given)
    return (
        FailurePattern.DIVERGED_EARLY if first_wrong < length / 2 else FailurePattern.DIVERGED_LATE
    )


def _first(token: int, tokens: Sequence[int]) -> int | None:
    return tokens.index(token) if token in tokens else None
