"""The check of a message by its texts and the training record, without a model."""

from typing import Any

import pytest

from hrm.data.config import ConversionConfig
from hrm.data.conversion import AcceptedPair, Converter
from hrm.evaluation.check import check_message
from schemas import PromptMatch, TextCheck
from tests.support.checkpoints import FIRST_RECORD, RECORD, SEVERAL

CONVERTER = Converter(ConversionConfig(puzzle_space=5))
SECURITY = AcceptedPair(prompt="security", completion="agent test", puzzle_id=3)


def pair(**fields: Any) -> AcceptedPair:  # noqa: ANN401
    return AcceptedPair.model_validate({**SECURITY.model_dump(), **fields})


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({}, PromptMatch.PAIR),
        # Another text of the same tokens.
        ({"prompt": "Cyber-security"}, PromptMatch.PAIR),
        ({"puzzle_id": 1}, PromptMatch.NEAR),
        ({"prompt": "\nSECURITY", "puzzle_id": 4}, PromptMatch.NEAR),
        ({"prompt": "data", "puzzle_id": 4}, PromptMatch.PUZZLE),
        ({"prompt": "data", "puzzle_id": 1}, PromptMatch.NONE),
    ],
)
def test_a_prompt_is_matched_by_what_is_trained_of_it(
    fields: dict[str, Any], match: PromptMatch
) -> None:
    message = pair(**fields)
    assert check_message(message, CONVERTER.example_of(message), RECORD).match is match


def test_a_puzzle_that_the_policy_draws_is_no_match() -> None:
    drawn = {}
    for number in range(50):
        message = pair(prompt=f"data {number}", puzzle_id=None)
        example = CONVERTER.example_of(message)
        assert check_message(message, example, RECORD).match is PromptMatch.NONE
        named = pair(prompt=message.prompt, puzzle_id=example.puzzle_id)
        drawn[example.puzzle_id] = check_message(named, example, RECORD).match
        assert check_message(example, example, RECORD).match is PromptMatch.NONE
    assert {puzzle for puzzle, match in drawn.items() if match is PromptMatch.PUZZLE} == {3, 4}


def test_the_texts_of_a_converted_example_are_unknown() -> None:
    example = CONVERTER.example_of(SECURITY)
    check = check_message(example, example, RECORD)
    assert (check.match, check.text) == (PromptMatch.PAIR, TextCheck.UNKNOWN)
    assert (check.truncated, check.unread_words) == (None, None)


def test_a_record_of_version_1_knows_pairs_and_no_texts() -> None:
    known = check_message(SECURITY, CONVERTER.example_of(SECURITY), FIRST_RECORD)
    assert (known.match, known.text) == (PromptMatch.PAIR, TextCheck.UNKNOWN)
    moved = pair(puzzle_id=4)
    check = check_message(moved, CONVERTER.example_of(moved), FIRST_RECORD)
    assert (check.match, check.text) == (PromptMatch.NONE, TextCheck.UNKNOWN)
    none = check_message(SECURITY, CONVERTER.example_of(SECURITY), None)
    assert (none.match, none.text) == (PromptMatch.NONE, TextCheck.UNKNOWN)


@pytest.mark.parametrize(
    ("prompt", "completion", "unread"),
    [("w " * 98, "w " * 98, 0), ("w " * 99, "w", 1), ("w", "w " * 100, 2), ("w " * 99,) * 2 + (2,)],
)
def test_words_that_the_model_does_not_read_are_counted(
    prompt: str, completion: str, unread: int
) -> None:
    message = pair(prompt=prompt, completion=completion)
    check = check_message(message, CONVERTER.example_of(message), RECORD)
    assert check.unread_words == unread
    assert check.truncated is (unread > 0)


def test_a_known_prompt_with_several_answers_names_their_rows() -> None:
    for message, rows in ((SECURITY, [3, 2]), (pair(puzzle_id=2), []), (pair(prompt="data"), [])):
        check = check_message(message, CONVERTER.example_of(message), SEVERAL)
        assert list(check.rows) == rows
    # The row of an answer is no puzzle that was trained.
    named = pair(puzzle_id=2, prompt="data")
    check = check_message(named, CONVERTER.example_of(named), SEVERAL)
    assert check.match is PromptMatch.NONE


def test_the_length_of_a_target_is_accepted_or_not_only_if_its_prompt_is_known() -> None:
    def accepted(message: AcceptedPair) -> bool:
        return check_message(message, CONVERTER.example_of(message), RECORD).target_accepted

    assert accepted(SECURITY)
    assert accepted(pair(completion="x"))
    assert not accepted(pair(completion="x y z"))
    assert accepted(pair(completion="x y z", puzzle_id=1))
    long = pair(completion="x y z")
    example = CONVERTER.example_of(long)
    assert not check_message(example, example, RECORD).target_accepted
    for record in (FIRST_RECORD, None):
        assert check_message(long, example, record).target_accepted
