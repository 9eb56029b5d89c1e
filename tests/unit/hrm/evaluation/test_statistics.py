"""Streamed figures equal those of the whole list."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm.evaluation.statistics import (
    IntegerHistogram,
    MedianSummary,
    PositiveHistogram,
    RunningStatistics,
    Share,
    Summary,
    wilson_interval,
)

# Wilson's interval.


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (1, 10, 0.0179, 0.4042),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (84, 84, 0.9563, 1.0),
        (20, 50, 0.2761, 0.5382),
    ],
)
def test_the_interval_is_the_published_one(
    successes: int, trials: int, low: float, high: float
) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_without_trials_the_interval_is_everything() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.data())
def test_the_interval_holds_the_share_and_its_ends_solve_wilsons_equation(
    data: st.DataObject,
) -> None:
    trials = data.draw(st.integers(1, 10**7))
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_interval(successes, trials)
    share = successes / trials
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        distance = 1.959964**2 * end * (1 - end) / trials
        assert (share - end) ** 2 == pytest.approx(distance, rel=1e-4, abs=1e-12)


def test_a_share_of_nothing_is_null() -> None:
    assert Share.measured(0, 0) == Share(count=0, of=0, share=None, low=None, high=None)
    assert Share.measured(1, 4).share == 0.25
    assert Share.counted(0, 0) == Share.measured(0, 0)


def test_a_share_of_everything_there_is_has_no_interval() -> None:
    assert Share.counted(1, 4) == Share(count=1, of=4, share=0.25, low=None, high=None)


# Figures of numbers.

FLOATS = st.floats(-1e6, 1e6)


@given(st.lists(FLOATS, min_size=1))
def test_running_figures_are_those_of_the_list(values: list[float]) -> None:
    running = RunningStatistics()
    for value in values:
        running.add(value)
    summary = running.summary()
    assert summary.mean == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert summary.spread == pytest.approx(statistics.pstdev(values), abs=1e-6 * len(values))
    assert (summary.min, summary.max) == (min(values), max(values))


@given(st.lists(st.integers(0, 1000), min_size=1))
def test_figures_of_integers_are_those_of_the_list(values: list[int]) -> None:
    histogram = IntegerHistogram()
    for value in values:
        histogram.add(value)
    summary = histogram.summary()
    assert summary.mean == pytest.approx(statistics.fmean(values))
    assert summary.median == statistics.median(values)
    assert summary.spread == pytest.approx(statistics.pstdev(values), abs=1e-9)
    assert (summary.min, summary.max) == (min(values), max(values))


@given(st.lists(st.floats(1e-8, 1e6), min_size=1))
def test_the_median_of_seconds_is_right_within_its_bound(values: list[float]) -> None:
    histogram = PositiveHistogram()
    for value in values:
        histogram.add(value)
    summary = histogram.summary()
    assert summary.median == pytest.approx(statistics.median_low(values), rel=0.025)
    assert summary.mean == pytest.approx(statistics.fmean(values))
    assert (summary.min, summary.max) == (min(values), max(values))


def test_no_value_has_no_figures() -> None:
    assert RunningStatistics().summary() == Summary()
    assert IntegerHistogram().summary() == MedianSummary()
    assert PositiveHistogram().summary() == MedianSummary()
    assert MedianSummary().median is None


def test_a_duration_of_zero_counts() -> None:
    histogram = PositiveHistogram()
    histogram.add(0.0)
    assert histogram.summary().median == 0.0


def test_memory_does_not_grow_with_the_values() -> None:
    seconds, steps = PositiveHistogram(), IntegerHistogram()
    for number in range(20_000):
        seconds.add(math.exp(number % 40 - 20))
        steps.add(number % 16)
    assert len(seconds._buckets) == 40
    assert len(steps.counts) == 16
