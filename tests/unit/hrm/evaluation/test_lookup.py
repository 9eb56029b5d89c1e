"""Tables of training pairs predict what a person would read off them."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from hrm.evaluation import lookup
from hrm.evaluation.baselines import Baseline
from hrm.evaluation.counters import BaselineCounter
from hrm.evaluation.lookup import TrainingPairs
from schemas import Difficulty, ExampleMetadata, HRMExample, PromptMatch

TOKENS = st.lists(st.integers(1, 3), max_size=5)
EXAMPLES = st.tuples(st.integers(0, 2), TOKENS)


def example(puzzle: int, inputs: Sequence[int], target: Sequence[int] = (5,)) -> HRMExample:
    return HRMExample(
        puzzle_id=puzzle,
        input_sequence=(0, *inputs, 11),
        target_sequence=(0, *target, 11),
        solution_steps=(),
        metadata=ExampleMetadata(prompt_length=1, completion_length=1, difficulty=Difficulty.EASY),
    )


def made(*pairs: HRMExample) -> list[Baseline]:
    training = TrainingPairs()
    for pair in pairs:
        training.add(pair)
    return list(training.baselines("pairs"))


def predicted(baseline: Baseline, of: HRMExample) -> tuple[int, ...]:
    """The one prediction."""
    (only,) = baseline.predict(of)
    return tuple(only)


def test_lookup_needs_the_same_puzzle_and_the_same_input() -> None:
    table = made(example(1, [1, 2], [7]))[0]
    assert table.name == "lookup"
    assert predicted(table, example(1, [1, 2])) == (0, 7, 11)
    assert predicted(table, example(2, [1, 2])) == ()
    assert predicted(table, example(1, [1, 3])) == ()


def test_the_nearest_target_of_equal_pairs_counts() -> None:
    pairs = example(1, [1], [7]), example(1, [1], [8, 9]), example(1, [1], [7])
    for baseline in made(*pairs):
        given = baseline.predict(example(1, [1]))
        assert [tuple(each) for each in given] == [(0, 7, 11), (0, 8, 9, 11)]
        assert counted(baseline, *pairs) == (3, 10, 10)
        # Of another length, but more tokens are right than of the first.
        assert counted(baseline, example(1, [1], [8, 7])) == (0, 3, 4)


def test_the_nearest_input_wins_whatever_its_puzzle() -> None:
    _, nearest = made(example(1, [1, 2, 3, 4], [7]), example(2, [1, 2, 5, 6], [8]))
    assert nearest.name == "nearest neighbour"
    assert predicted(nearest, example(1, [1, 2, 5, 4, 6])) == (0, 8, 11)
    assert predicted(nearest, example(9, [1, 2, 3])) == (0, 7, 11)


def test_of_equally_near_inputs_the_own_puzzle_wins_and_then_the_earliest() -> None:
    _, nearest = made(example(1, [1], [6]), example(2, [2], [7]), example(2, [3], [8]))
    assert predicted(nearest, example(2, [4])) == (0, 7, 11)
    assert predicted(nearest, example(9, [4])) == (0, 6, 11)
    assert predicted(nearest, example(2, [3])) == (0, 8, 11)


@given(st.lists(EXAMPLES, min_size=1, max_size=8), EXAMPLES)
def test_the_nearest_neighbour_is_that_of_a_plain_search(
    pairs: list[tuple[int, list[int]]], asked: tuple[int, list[int]]
) -> None:
    # Each pair has a target of its own, which tells it from the others.
    training = [example(*pair, target=[1] * number) for number, pair in enumerate(pairs)]
    query = example(*asked)

    def rank(pair: HRMExample) -> tuple[int, bool]:
        distance = Levenshtein.distance(pair.input_sequence, query.input_sequence)
        return distance, pair.puzzle_id != query.puzzle_id

    _, nearest = made(*training)
    first, *_ = nearest.predict(query)
    assert tuple(first) == min(training, key=rank).target_sequence


def test_more_pairs_than_the_limit_have_no_nearest_neighbour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookup, "MAX_NEIGHBOURS", 1)
    pairs = (example(1, [1]), example(1, [2]))
    assert [baseline.name for baseline in made(*pairs)] == ["lookup"]
    assert len(made(pairs[0], pairs[0])) == 2


def counted(baseline: Baseline, *examples: HRMExample) -> tuple[int, int, int]:
    """Solved examples, correct tokens and target tokens."""
    counter = BaselineCounter(baseline)
    for each in examples:
        counter.add(each, PromptMatch.NONE)
    overall = counter.figures(recorded=False, complete=False).overall
    return overall.solved.count, overall.correct_tokens, overall.target_tokens


def test_no_prediction_has_no_token_right() -> None:
    table = made(example(1, [1]))[0]
    assert counted(table, example(2, [1])) == (0, 0, 3)


def test_a_prediction_of_another_length_is_not_solved() -> None:
    # 11 is the token of the end, and of words that contain it.
    table = made(example(1, [1], [7, 11, 8]))[0]
    assert counted(table, example(1, [1], [7, 11, 8])) == (1, 5, 5)
    assert counted(table, example(1, [1], [7])) == (0, 3, 3)
    assert counted(table, example(1, [1], [7, 11, 8, 9])) == (0, 4, 6)
