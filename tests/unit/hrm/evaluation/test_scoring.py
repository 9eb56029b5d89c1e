"""Scores and failure patterns by hand-made examples, and the laws between the figures."""

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hrm.evaluation.scoring import commonest_token, score
from schemas import FailurePattern

END = 11
TARGET = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 3, 5, 7, 9, 2, 4, 6, END)
"""A target of 20 tokens: one wrong token is 5 %."""


def changed(target: tuple[int, ...], *positions: int) -> tuple[int, ...]:
    """`target` with another token than `END` at each of `positions`."""
    return tuple(
        (token + 5) % 11 if index in positions else token for index, token in enumerate(target)
    )


# Figures.


def test_a_right_prediction_is_solved() -> None:
    figures = score(TARGET, TARGET, end=END, baseline_token=None)
    assert figures.solved
    assert (figures.correct_tokens, figures.target_tokens) == (20, 20)
    assert figures.token_accuracy == figures.edit_similarity == 1
    assert figures.failure_pattern is None
    assert not figures.confusions


def test_what_is_predicted_beyond_the_target_does_not_count() -> None:
    assert score((*TARGET, 3, 3, 3), TARGET, end=END, baseline_token=None).solved


def test_confusions_name_target_and_prediction() -> None:
    figures = score((0, 2, 2, 3, 3, END), (0, 1, 1, 3, 4, END), end=END, baseline_token=None)
    assert figures.confusions == Counter({(1, 2): 2, (4, 3): 1})
    assert figures.correct_tokens == 3
    assert figures.token_accuracy == 0.5


def test_an_inserted_word_costs_one_edit_only() -> None:
    target = (0, 1, 2, 3, 4, 5, 6, 7, 8, END)
    figures = score((0, 9, 1, 2, 3, 4, 5, 6, 7, 8), target, end=END, baseline_token=None)
    assert figures.correct_tokens == 1
    # Insert 9; the end falls off the target's length.
    assert figures.edit_similarity == pytest.approx(0.8)
    assert figures.failure_pattern is FailurePattern.SHIFTED


def test_a_dropped_word_costs_one_edit_only() -> None:
    target = (0, 1, 2, 3, 4, 5, 6, 7, 8, END)
    figures = score((0, 2, 3, 4, 5, 6, 7, 8, END, 3), target, end=END, baseline_token=None)
    assert figures.correct_tokens == 1
    assert figures.edit_similarity == pytest.approx(0.8)
    assert figures.failure_pattern is FailurePattern.SHIFTED


def test_nothing_in_common_is_no_similarity() -> None:
    figures = score((1, 1, 1), (2, 3, 4), end=END, baseline_token=None)
    assert figures.token_accuracy == figures.edit_similarity == 0


# Patterns: each by example.


PATTERNS = [
    ((0, 1, 5, END), (0, 1, 2, END), FailurePattern.NEAR_MISS),
    (changed(TARGET, 3), TARGET, FailurePattern.NEAR_MISS),
    (changed(TARGET * 5, 1, 22, 43, 64, 85), TARGET * 5, FailurePattern.NEAR_MISS),
    ((0, *TARGET[:-1]), TARGET, FailurePattern.SHIFTED),
    ((*TARGET[1:], 0), TARGET, FailurePattern.SHIFTED),
    ((0, 1, END, 3, END), (0, 1, 2, 3, 4), FailurePattern.WRONG_LENGTH),
    ((0, 1, 2, 3, 0, 0), (0, 1, 2, 4, 5, END), FailurePattern.WRONG_LENGTH),
    ((3, 3, 3, 3, 3, END), (3, 1, 3, 2, 4, END), FailurePattern.DIVERGED_EARLY),
    ((3, 3, 3, 3, 3, 3), (3, 1, 3, 2, 4, 5), FailurePattern.NO_SIGNAL),
    ((9, 8, 9, 8, 9, END), (0, 1, 2, 3, 4, END), FailurePattern.NO_SIGNAL),
    (changed(TARGET, 0, 5, 6, 7, 8, 9, 19), (*TARGET[:-1], 0), FailurePattern.DIVERGED_EARLY),
    (changed(TARGET, 9, 11, 13, 15, 17), TARGET, FailurePattern.DIVERGED_EARLY),
    (changed(TARGET, 10, 11, 13, 15, 17), TARGET, FailurePattern.DIVERGED_LATE),
    (changed(TARGET, 14, 15, 16, 17, 18), TARGET, FailurePattern.DIVERGED_LATE),
]
"""Predictions and targets with the pattern of their failure: at least one for each."""


@pytest.mark.parametrize(
    ("predicted", "target", "pattern"),
    PATTERNS,
)
def test_patterns(
    predicted: tuple[int, ...], target: tuple[int, ...], pattern: FailurePattern
) -> None:
    assert score(predicted, target, end=END, baseline_token=None).failure_pattern is pattern


# Patterns: the first that applies, if two do.


def test_every_pattern_has_an_example() -> None:
    assert {pattern for *_, pattern in PATTERNS} == set(FailurePattern)


def test_near_miss_comes_before_wrong_length() -> None:
    figures = score((0, 1, 2, 3), (0, 1, 2, END), end=END, baseline_token=None)
    assert figures.failure_pattern is FailurePattern.NEAR_MISS


def test_near_miss_comes_before_shifted() -> None:
    # One word dropped before the last: only two positions differ, of 100 tokens.
    target = (*(TARGET * 5)[:97], 1, 2, 3)
    figures = score((*target[:97], 2, 3, 4), target, end=END, baseline_token=None)
    assert figures.edit_similarity > figures.token_accuracy
    assert figures.failure_pattern is FailurePattern.NEAR_MISS


def test_shifted_comes_before_wrong_length() -> None:
    figures = score((0, *TARGET[:-1]), TARGET, end=END, baseline_token=None)
    assert END not in (0, *TARGET[:-1])
    assert figures.failure_pattern is FailurePattern.SHIFTED


def test_wrong_length_comes_before_no_signal() -> None:
    figures = score((3, 3, END, 3), (1, 2, 4, END), end=END, baseline_token=None)
    assert figures.failure_pattern is FailurePattern.WRONG_LENGTH


def test_no_signal_comes_before_diverged() -> None:
    figures = score((1, 1, 7, 7), (1, 1, 2, 2), end=END, baseline_token=None)
    assert figures.failure_pattern is FailurePattern.NO_SIGNAL


def test_a_shift_below_the_similarity_is_none() -> None:
    # Two edits of nine tokens leave 0.78.
    target = (0, 1, 2, 3, 4, 5, 6, 7, END)
    figures = score((0, 9, 1, 2, 3, 4, 5, 6, 7), target, end=END, baseline_token=None)
    assert figures.edit_similarity < 0.8
    assert figures.failure_pattern is FailurePattern.WRONG_LENGTH


@pytest.mark.parametrize(("length", "wrong"), [(14, 2), (50, 9), (100, 18)])
def test_wrong_tokens_alone_are_no_shift(length: int, wrong: int) -> None:
    target = tuple(range(10)) * 10
    target = target[:length]
    predicted = tuple(
        10 if index < 5 * wrong and index % 5 == 0 else token for index, token in enumerate(target)
    )
    figures = score(predicted, target, end=END, baseline_token=None)
    assert figures.target_tokens - figures.correct_tokens == wrong
    assert figures.failure_pattern is FailurePattern.DIVERGED_EARLY


# The length.


def test_a_target_of_no_accepted_length_is_not_solved() -> None:
    figures = score(TARGET, TARGET, end=END, baseline_token=None, length_accepted=False)
    assert not figures.solved
    assert figures.token_accuracy == figures.edit_similarity == 1
    assert figures.failure_pattern is FailurePattern.WRONG_LENGTH
    assert not figures.confusions


@pytest.mark.parametrize(("predicted", "target", "pattern"), PATTERNS)
def test_wrong_tokens_say_more_than_the_length(
    predicted: tuple[int, ...], target: tuple[int, ...], pattern: FailurePattern
) -> None:
    figures = score(predicted, target, end=END, baseline_token=None, length_accepted=False)
    assert figures.failure_pattern is pattern


# The baseline.


def test_the_training_sets_commonest_token_is_the_baseline_if_recorded() -> None:
    predicted, target = (1, 1, 7, 7), (1, 1, 2, 2)
    by_token = {
        baseline: score(predicted, target, end=END, baseline_token=baseline).failure_pattern
        for baseline in (None, 1, 2, 5)
    }
    assert by_token == {
        None: FailurePattern.NO_SIGNAL,
        1: FailurePattern.NO_SIGNAL,
        2: FailurePattern.NO_SIGNAL,
        # Guessing 5 everywhere has nothing right here.
        5: FailurePattern.DIVERGED_LATE,
    }


def test_without_any_right_token_there_is_no_signal_under_every_baseline() -> None:
    for baseline in (None, *range(12)):
        figures = score((3, 3, 3), (1, 2, 1), end=END, baseline_token=baseline)
        assert figures.failure_pattern is FailurePattern.NO_SIGNAL


def test_the_commonest_token_is_the_first_of_several() -> None:
    assert commonest_token([0, 3, 1, 3]) == 1
    assert commonest_token([5, 0]) == 0
    assert commonest_token([0, 0, 1]) == 2


# Laws.

TOKENS = st.integers(0, 11)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """A prediction and a target of one length, alike in most places."""
    target = draw(st.lists(TOKENS, min_size=1, max_size=100))
    predicted = list(target)
    for _ in range(draw(st.integers(0, 6))):
        index = draw(st.integers(0, len(target) - 1))
        edit = draw(st.sampled_from(["replace", "insert", "drop"]))
        if edit == "replace":
            predicted[index] = draw(TOKENS)
        elif edit == "insert":
            predicted.insert(index, draw(TOKENS))
        else:
            predicted.append(predicted.pop(index))
    return predicted[: len(target)], target


@given(pairs(), st.none() | TOKENS)
@example(([1], [1]), None)
@example(([1], [2]), 2)
def test_the_figures_agree_with_each_other(
    pair: tuple[list[int], list[int]], baseline: int | None
) -> None:
    predicted, target = pair
    figures = score(predicted, target, end=END, baseline_token=baseline)
    assert 0 <= figures.token_accuracy <= 1
    assert 0 <= figures.edit_similarity <= 1
    assert figures.edit_similarity >= figures.token_accuracy - 1e-12
    assert figures.target_tokens == len(target)
    assert sum(figures.confusions.values()) == len(target) - figures.correct_tokens
    assert all(expected != given for expected, given in figures.confusions)
    assert (
        figures.solved
        == (figures.token_accuracy == 1)
        == (figures.edit_similarity == 1)
        == (figures.failure_pattern is None)
        == (predicted == target)
    )


@given(pairs(), st.lists(TOKENS))
def test_padding_changes_nothing(pair: tuple[list[int], list[int]], rest: list[int]) -> None:
    predicted, target = pair
    assert score(predicted + rest, target, end=END, baseline_token=None) == score(
        predicted, target, end=END, baseline_token=None
    )
