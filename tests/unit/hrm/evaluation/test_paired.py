"""Paired tests give the exact values of tables that can be computed by hand."""

import math
from fractions import Fraction
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrm.evaluation.paired import bootstrap_interval, holm, mcnemar

COUNTS = st.integers(0, 400)
P_VALUES = st.lists(st.floats(0, 1), max_size=12)


def exact(only_first: int, only_second: int) -> float:
    """McNemar's p-value in whole numbers."""
    flips, smaller = only_first + only_second, min(only_first, only_second)
    tail = term = 1  # ways to have no head, and so on up to `smaller` heads
    for heads in range(1, smaller + 1):
        term = term * (flips - heads + 1) // heads
        tail += term
    return float(min(Fraction(1), Fraction(2 * tail, 2**flips)))


# McNemar.


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (2, 0, 2 / 2**2),
        (5, 0, 2 / 2**5),
        (6, 0, 2 / 2**6),
        (9, 1, 2 * (1 + 10) / 2**10),
        (8, 3, 2 * (1 + 11 + 55 + 165) / 2**11),
        (30, 0, 2 / 2**30),
        (7, 7, 1.0),
        (8, 7, 1.0),
    ],
)
def test_mcnemars_p_value_is_that_of_the_coin_flips(
    only_first: int, only_second: int, p: float
) -> None:
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=1e-12)


def test_forty_against_ten_is_not_chance() -> None:
    assert mcnemar(40, 10) == pytest.approx(2.386e-5, rel=1e-3)


@given(COUNTS, COUNTS)
def test_mcnemars_p_value_equals_the_sum_in_whole_numbers(first: int, second: int) -> None:
    p = mcnemar(first, second)
    assert 0 <= p <= 1
    assert p == mcnemar(second, first)
    assert p == pytest.approx(exact(first, second), rel=1e-10)


@given(COUNTS, COUNTS)
def test_more_of_the_better_ones_makes_the_p_value_smaller(first: int, second: int) -> None:
    more, fewer = max(first, second), min(first, second)
    assert mcnemar(more + 1, fewer) <= mcnemar(more, fewer) * (1 + 1e-9)


def test_large_counts_neither_overflow_nor_lose_their_digits() -> None:
    assert mcnemar(10_200, 9_800) == pytest.approx(exact(10_200, 9_800), rel=1e-9)
    assert mcnemar(10_000_000, 0) == 0.0
    assert mcnemar(5_000_000, 5_000_000) == 1.0


# Holm.


def test_holm_multiplies_the_smallest_by_all_and_each_next_by_one_fewer() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([0.9, 0.9, 0.9]) == [1.0, 1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(P_VALUES)
def test_holm_keeps_the_order_and_makes_no_p_value_smaller(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert [high for _, high in pairs] == sorted(adjusted)
    assert all(low <= high <= 1 for low, high in pairs)


@given(P_VALUES, st.randoms())
def test_holm_does_not_depend_on_the_order_of_the_tests(
    p_values: list[float], random: Random
) -> None:
    order = list(range(len(p_values)))
    random.shuffle(order)
    shuffled = holm([p_values[index] for index in order])
    assert shuffled == [holm(p_values)[index] for index in order]


# The bootstrap.


def counts(*correct: int, of: int = 10) -> torch.Tensor:
    return torch.tensor([[each, of] for each in correct])


def close(low: float, high: float, tolerance: float = 1e-9) -> object:
    return pytest.approx((low, high), abs=tolerance)


def test_the_interval_of_equal_predictors_is_zero() -> None:
    assert bootstrap_interval(counts(3, 10, 7), counts(3, 10, 7)) == (0.0, 0.0)


def test_a_difference_that_is_the_same_everywhere_has_no_width() -> None:
    assert bootstrap_interval(counts(5, 6, 7), counts(3, 4, 5)) == close(0.2, 0.2)


def test_the_interval_of_many_examples_is_that_of_the_normal_approximation() -> None:
    # In 100 of 1,000 examples only the first predictor has its 10 tokens right.
    first, second = counts(*[10] * 1000), counts(*[0] * 100, *[10] * 900)
    margin = 1.96 * math.sqrt(0.1 * 0.9 / 1000)
    low, high = bootstrap_interval(first, second)
    assert (low, high) == close(0.1 - margin, 0.1 + margin, 2e-3)
    assert bootstrap_interval(second, first) == close(-high, -low)


def test_a_long_example_counts_for_more_as_in_the_accuracy_itself() -> None:
    first, second = torch.tensor([[1, 1], [0, 99]]), torch.tensor([[0, 1], [0, 99]])
    # A draw has the short example twice, each once, or the long one twice.
    assert bootstrap_interval(first, second) == (0.0, 1.0)
    many = bootstrap_interval(first.repeat(500, 1), second.repeat(500, 1))
    assert many == close(0.01, 0.01, 2e-3)


def test_the_seed_decides_the_draws() -> None:
    first, second = counts(1, 5, 9, 2, 8), counts(2, 4, 4, 4, 9)
    once = bootstrap_interval(first, second, seed=3)
    assert bootstrap_interval(first, second, seed=3) == once
    assert bootstrap_interval(first, second, seed=4) != once
