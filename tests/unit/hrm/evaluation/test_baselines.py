"""Guesses that never look at the input."""

import pytest

from hrm.evaluation.baselines import Guess, TargetCounter, commonest
from schemas import MAX_SEQUENCE_LENGTH


def baselines(*targets: list[int]) -> dict[str, Guess]:
    counter = TargetCounter(12)
    for target in targets:
        counter.add(target)
    return {baseline.name: baseline for baseline in counter.baselines("three pairs")}


def test_there_are_three_baselines_and_each_names_its_training_targets() -> None:
    found = baselines([0, 3, 11])
    assert list(found) == ["commonest token", "commonest by position", "bigram"]
    assert {baseline.fitted_on for baseline in found.values()} == {"three pairs"}


def test_each_guesses_every_position_a_sequence_may_have() -> None:
    for baseline in baselines([0, 3, 11]).values():
        assert len(baseline.tokens) == MAX_SEQUENCE_LENGTH


def test_the_commonest_token_is_guessed_everywhere() -> None:
    guess = baselines([0, 3, 3, 11], [0, 3, 11])["commonest token"]
    assert set(guess.tokens) == {3}


def test_the_smallest_of_equally_common_tokens_is_guessed() -> None:
    assert set(commonest([0, 2, 5, 5, 1, 0, 0, 0, 0, 0, 0, 0], "record").tokens) == {2}


def test_by_position_and_the_commonest_beyond_every_target() -> None:
    guess = baselines([0, 4, 7, 11], [0, 4, 8, 8, 11], [0, 5, 8, 11])["commonest by position"]
    # Beyond every target: 0, 8 and 11 occur three times each, and 0 is the smallest of them.
    assert guess.tokens[:6] == (0, 4, 8, 11, 11, 0)


def test_bigram_goes_on_from_its_own_guess() -> None:
    # 4 is followed by 6 twice and by 9 once: the guess before it counts, not the position.
    guess = baselines([0, 4, 6, 11], [0, 4, 6, 11], [0, 5, 4, 9, 11])["bigram"]
    assert guess.tokens[:4] == (0, 4, 6, 11)


def test_bigram_guesses_the_commonest_token_if_nothing_ever_followed() -> None:
    guess = baselines([0, 4, 4, 11])["bigram"]
    # After 4 came 4 and 11 once each: the smaller one wins every time.
    assert guess.tokens == (0, *[4] * 99)
    ended = baselines([0, 11], [0, 11], [0, 11], [0, 11])["bigram"]
    assert ended.tokens[:4] == (0, 11, 0, 11)


@pytest.mark.parametrize("length", [2, 100])
def test_targets_of_every_length_are_counted(length: int) -> None:
    target = [0, *[5] * (length - 2), 11]
    found = baselines(target)
    assert found["commonest by position"].tokens[:length] == tuple(target)
