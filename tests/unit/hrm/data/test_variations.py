"""Variations of accepted prompts: how far two are apart, and which may vary."""

import pytest

from hrm.data.variations import allowed, distance, standing_alone

PROMPT = tuple(range(20, 32))


@pytest.mark.parametrize(
    ("other", "changes"),
    [
        (PROMPT, 0),
        (PROMPT[:4] + PROMPT[5:], 1),
        ((*PROMPT[:4], 99, *PROMPT[5:]), 1),
        ((*PROMPT[:4], 99, *PROMPT[4:]), 1),
        ((21, 20, *PROMPT[2:]), 1),
        ((21, 20, *PROMPT[2:-1]), 2),
    ],
    ids=["none", "drop", "replace", "insert", "swap", "swap and drop"],
)
def test_each_changed_word_counts_once(other: tuple[int, ...], changes: int) -> None:
    assert distance(PROMPT, other) == changes


def test_a_distance_above_the_limit_is_only_known_to_be_above_it() -> None:
    assert distance(PROMPT, (), 3) > 3


@pytest.mark.parametrize(
    ("words", "changes"), [(0, 0), (2, 0), (3, 1), (5, 2), (7, 2), (8, 3), (98, 3)]
)
def test_at_most_two_fifths_of_a_prompt_may_change(words: int, changes: int) -> None:
    assert allowed(tuple(range(words)), 3) == changes


def test_prompts_whose_variations_meet_do_not_vary() -> None:
    far, near = tuple(range(50, 62)), (*PROMPT[:6], *range(90, 96))
    assert distance(PROMPT, near) == 6
    prompts = [(1, PROMPT), (1, far), (2, near), (3, (7, 8))]
    assert standing_alone(prompts, 3) == {(1, PROMPT), (1, far), (2, near)}
    assert standing_alone([*prompts, (1, near)], 3) == {(1, far), (2, near)}
    assert standing_alone([*prompts, (1, near)], 2) == {(1, PROMPT), (1, far), (1, near), (2, near)}


def test_a_prompt_that_is_there_twice_stands_alone() -> None:
    assert standing_alone([(1, PROMPT), (1, PROMPT)], 1) == {(1, PROMPT)}
