"""The length of a run and the size of its puzzle table follow from the number of examples."""

import pytest

from hrm.training.plan import (
    MOST_ROWS,
    default_episodes,
    default_rows,
    default_steps,
    episodes_of,
    few_episodes,
)


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize(
    ("examples", "batch_size"), [(1, 96), (54, 96), (96, 96), (97, 96), (815, 96), (10_000, 8)]
)
def test_the_default_length_gives_each_example_its_episodes_and_hardly_more(
    examples: int, batch_size: int, *, noise: bool
) -> None:
    wanted = default_episodes(examples, noise=noise)
    steps = default_steps(examples, batch_size, 16, noise=noise)
    assert steps % 100 == 0
    assert episodes_of(steps, examples, batch_size, 16) >= wanted
    assert wanted == 2 * few_episodes(examples, noise=noise)
    assert episodes_of(steps - 100, examples, batch_size, 16) < wanted


def test_many_examples_need_fewer_episodes_each() -> None:
    found = [default_episodes(n, noise=False) for n in (1, 100, 137, 500, 10_000)]
    assert list(map(round, found)) == [100, 100, 78, 36, 21]
    noisy = [default_episodes(n, noise=True) for n in (1, 100, 137, 500, 10_000)]
    assert noisy == [2.5 * each for each in found]


def test_what_was_measured_is_counted_as_it_was() -> None:
    # 33 messages in batches of 24, learned after 1,000 steps.
    assert episodes_of(1000, 33, 24, 16) == pytest.approx(45, abs=0.5)
    # A batch never has more rows than there are examples.
    assert episodes_of(1000, 24, 96, 16) == 62.5


@pytest.mark.parametrize(
    ("messages", "rows"),
    [(0, 1000), (84, 1000), (100, 1000), (101, 2000), (500, 5000), (10_000, 100_000)],
)
def test_puzzle_rows_keep_shared_ones_rare(messages: int, rows: int) -> None:
    assert default_rows(messages) == rows
    assert 1 - (1 - 1 / rows) ** max(0, messages - 1) < 0.1


def test_a_puzzle_table_stays_below_the_largest() -> None:
    assert default_rows(10**6) == MOST_ROWS
