"""The check of a message by its texts and the training record, without a model."""

from typing import Any

import pytest

from hrm.checkpoint.pairs import AcceptedExample
from hrm.checkpoint.record import TrainingRecord, pair_hash
from hrm.data.config import ENOUGH_PROMPTS, ConversionConfig, PuzzlePolicy, Task
from hrm.data.conversion import AcceptedPair, Content, Converter
from hrm.data.texts import TextHashes
from hrm.evaluation.check import MessageCheck, check_message
from hrm.training.examples import training_record
from schemas import PromptMatch, TextCheck
from tests.support.checkpoints import ACCEPTED, FIRST_RECORD, RECORD, SEVERAL

CONVERTER = Converter(ConversionConfig(puzzle_space=5))
SECURITY = AcceptedPair(prompt="security", completion="agent test", puzzle_id=3)


def pair(**fields: Any) -> AcceptedPair:  # noqa: ANN401
    return AcceptedPair.model_validate({**SECURITY.model_dump(), **fields})


def checked(
    content: Content, record: TrainingRecord | None, converter: Converter = CONVERTER
) -> MessageCheck:
    example = converter.example_of(content)
    return check_message(content, example, record, converter.named_puzzle(content))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({}, PromptMatch.PAIR),
        # Another text of the same tokens.
        ({"prompt": "Cyber-security"}, PromptMatch.PAIR),
        ({"puzzle_id": 1}, PromptMatch.NEAR),
        ({"prompt": "\nSECURITY", "puzzle_id": 4}, PromptMatch.NEAR),
        ({"prompt": "data", "puzzle_id": 4}, PromptMatch.NEW),
        ({"prompt": "data", "puzzle_id": 1}, PromptMatch.NONE),
    ],
)
def test_a_prompt_is_matched_by_what_is_trained_of_it(
    fields: dict[str, Any], match: PromptMatch
) -> None:
    message = pair(**fields)
    assert checked(message, RECORD).match is match


def test_a_puzzle_that_the_policy_draws_is_no_match() -> None:
    drawn = {}
    for number in range(50):
        message = pair(prompt=f"data {number}", puzzle_id=None)
        example = CONVERTER.example_of(message)
        assert checked(message, RECORD).match is PromptMatch.NONE
        named = pair(prompt=message.prompt, puzzle_id=example.puzzle_id)
        drawn[example.puzzle_id] = checked(named, RECORD).match
        assert checked(example, RECORD).match is PromptMatch.NONE
    assert {puzzle for puzzle, match in drawn.items() if match is PromptMatch.NEW} == {3, 4}


def test_the_texts_of_a_converted_example_are_unknown() -> None:
    example = CONVERTER.example_of(SECURITY)
    check = checked(example, RECORD)
    assert (check.match, check.text) == (PromptMatch.PAIR, TextCheck.UNKNOWN)
    assert (check.truncated, check.unread_words) == (None, None)


def test_a_record_of_version_1_knows_pairs_and_no_texts() -> None:
    known = checked(SECURITY, FIRST_RECORD)
    assert (known.match, known.text) == (PromptMatch.PAIR, TextCheck.UNKNOWN)
    moved = pair(puzzle_id=4)
    check = checked(moved, FIRST_RECORD)
    assert (check.match, check.text) == (PromptMatch.NONE, TextCheck.UNKNOWN)
    none = checked(SECURITY, None)
    assert (none.match, none.text) == (PromptMatch.NONE, TextCheck.UNKNOWN)


@pytest.mark.parametrize(
    ("prompt", "completion", "unread"),
    [("w " * 98, "w " * 98, 0), ("w " * 99, "w", 1), ("w", "w " * 100, 2), ("w " * 99,) * 2 + (2,)],
)
def test_words_that_the_model_does_not_read_are_counted(
    prompt: str, completion: str, unread: int
) -> None:
    message = pair(prompt=prompt, completion=completion)
    check = checked(message, RECORD)
    assert check.unread_words == unread
    assert check.truncated is (unread > 0)


def test_a_known_prompt_with_several_answers_names_their_rows() -> None:
    for message, rows in ((SECURITY, [3, 2]), (pair(puzzle_id=2), []), (pair(prompt="data"), [])):
        check = checked(message, SEVERAL)
        assert list(check.rows) == rows
    # The row of an answer is no puzzle that was trained.
    named = pair(puzzle_id=2, prompt="data")
    check = checked(named, SEVERAL)
    assert check.match is PromptMatch.NONE


def test_the_length_of_a_target_is_accepted_or_not_only_if_its_prompt_is_known() -> None:
    def accepted(message: AcceptedPair) -> bool:
        return checked(message, RECORD).target_accepted

    assert accepted(SECURITY)
    assert accepted(pair(completion="x"))
    assert not accepted(pair(completion="x y z"))
    assert accepted(pair(completion="x y z", puzzle_id=1))
    long = pair(completion="x y z")
    example = CONVERTER.example_of(long)
    assert not checked(example, RECORD).target_accepted
    for record in (FIRST_RECORD, None):
        assert checked(long, record).target_accepted


# Variations: conversion 2, in which words of these prompts have tokens of their own.

WIDE = Converter(ConversionConfig(version=2, hashed_tokens=500, puzzle_space=5))
PROMPT = "plan the load test of a busy online shop before its sale"


def varied_record(prompt_noise: int, *accepted: AcceptedPair) -> TrainingRecord:
    examples = []
    for line, each in enumerate(accepted):
        example = WIDE.example_of(each)
        found = pair_hash(example.puzzle_id, example.input_sequence)
        texts = TextHashes.of(each.prompt, each.completion)
        examples.append(AcceptedExample(line, example, found, texts))
    return training_record(examples, vocabulary_size=600, prompt_noise=prompt_noise)


ACCEPTED_PROMPT = pair(prompt=PROMPT, completion="start with a baseline run")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"prompt": PROMPT}, PromptMatch.PAIR),
        ({"prompt": f"please {PROMPT}"}, PromptMatch.NEAR),
        ({"prompt": f"please kindly {PROMPT} now"}, PromptMatch.NEAR),
        ({"prompt": f"please kindly {PROMPT} right now"}, PromptMatch.NEW),
        # Without a puzzle of its own, the policy draws one.
        ({"prompt": f"please {PROMPT}", "puzzle_id": None}, PromptMatch.NONE),
        ({"prompt": f"please {PROMPT}", "puzzle_id": 1}, PromptMatch.NONE),
    ],
)
def test_a_prompt_is_near_if_training_changed_as_many_words(
    fields: dict[str, Any], match: PromptMatch
) -> None:
    message = pair(**{"completion": "start", **fields})
    record = varied_record(3, ACCEPTED_PROMPT)
    assert checked(message, record, WIDE).match is match


def test_without_noise_in_training_no_changed_prompt_is_near() -> None:
    message = pair(prompt=f"please {PROMPT}")
    record = varied_record(0, ACCEPTED_PROMPT)
    assert checked(message, record, WIDE).match is PromptMatch.NEW


def test_prompts_of_a_task_are_not_near_each_other() -> None:
    other = pair(prompt=PROMPT.replace("shop", "bank"), completion="start with a drill")
    message = pair(prompt=PROMPT.replace("shop", "school"))
    record = varied_record(3, ACCEPTED_PROMPT, other)
    assert checked(message, record, WIDE).match is PromptMatch.NEW


def test_a_varied_prompt_has_the_accepted_targets_of_its_own() -> None:
    record = varied_record(3, ACCEPTED_PROMPT)
    for completion, accepted in (("start with a baseline run", True), ("start with", False)):
        message = pair(prompt=f"please {PROMPT}", completion=completion)
        assert checked(message, record, WIDE).target_accepted is accepted


# Tasks.

TASKS = Converter(
    ConversionConfig(
        puzzle_policy=PuzzlePolicy.TASK, puzzle_space=5, tasks=(Task(name="plan", row=5),)
    )
)


def of_a_task(prompts: int) -> TrainingRecord:
    row = 5
    accepted = ACCEPTED.model_copy(
        update={"puzzles": frozenset({row}), "prompt_counts": {row: prompts} if prompts > 1 else {}}
    )
    return RECORD.model_copy(update={"accepted": accepted})


@pytest.mark.parametrize(
    ("prompts", "match"),
    [
        (1, PromptMatch.NEW),
        (ENOUGH_PROMPTS - 1, PromptMatch.NEW),
        (ENOUGH_PROMPTS, PromptMatch.PUZZLE),
    ],
)
def test_a_new_prompt_of_a_task_is_judged_once_the_task_has_enough(
    prompts: int, match: PromptMatch
) -> None:
    message = pair(prompt="data", puzzle_id=None, task="plan")
    assert checked(message, of_a_task(prompts), TASKS).match is match


def test_an_unknown_task_is_as_if_none_was_named() -> None:
    unknown = pair(prompt="data", puzzle_id=None, task="other")
    assert checked(unknown, of_a_task(ENOUGH_PROMPTS), TASKS).match is PromptMatch.NONE
    trained = TASKS.puzzle_id_for("security")
    record = RECORD.model_copy(
        update={
            "pair_hashes": frozenset({pair_hash(trained, [0, 4, 11])}),
            "accepted": ACCEPTED.model_copy(update={"target_lengths": {}}),
        }
    )
    known = pair(puzzle_id=None, task="other")
    assert checked(known, record, TASKS).match is PromptMatch.PAIR
