"""The length of a run and the size of its puzzle table follow from the number of examples."""

import pytest

from hrm.training.plan import (
    EPISODES_OF_NEW,
    MOST_ROWS,
    default_episodes,
    default_rows,
    default_steps,
    emphasis,
    episodes_of,
    few_episodes,
    further_batch,
)


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize(
    ("examples", "batch_size"), [(1, 96), (54, 96), (96, 96), (97, 96), (815, 96), (10_000, 8)]
)
def test_the_default_length_gives_each_example_its_episodes_and_hardly_more(
    examples: int, batch_size: int, *, noise: bool
) -> None:
    wanted = default_episodes(examples) * (2.5 if noise else 1)
    steps = default_steps(examples, batch_size, 16, noise=noise)
    assert steps % 100 == 0
    assert episodes_of(steps, examples, batch_size, 16) >= wanted
    assert wanted == 2 * few_episodes(examples, noise=noise)
    assert episodes_of(steps - 100, examples, batch_size, 16) < wanted


def test_many_examples_need_fewer_episodes_each() -> None:
    assert [round(default_episodes(count)) for count in (1, 100, 137, 500, 10_000)] == [
        *(100, 100, 78, 36, 21)
    ]


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


def test_a_run_that_replays_is_as_long_as_its_new_examples_need() -> None:
    # Of 124 draws, 40 are of the ten new examples: 4 each, where the mean of all 94 is 1.32.
    stress = emphasis(10, 84, 4)
    assert stress == pytest.approx(4 / (124 / 94))
    steps = default_steps(94, 32, 16, noise=False, emphasis=stress)
    episodes = [stress * episodes_of(each, 94, 32, 16) for each in (steps - 100, steps)]
    assert episodes[0] < EPISODES_OF_NEW <= episodes[1]
    assert few_episodes(94, noise=False, further=True) < EPISODES_OF_NEW
    assert emphasis(0, 84, 4) == emphasis(10, 0, 4) == 1


@pytest.mark.parametrize(("new", "rows"), [(0, 32), (1, 32), (10, 32), (20, 60), (500, 96)])
def test_a_batch_does_not_hold_the_same_few_new_examples_over_and_over(new: int, rows: int) -> None:
    assert further_batch(new, 96) == rows
    assert further_batch(new, 8) == 8
