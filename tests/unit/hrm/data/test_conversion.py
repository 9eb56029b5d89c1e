"""`hrm.data.conversion` follows the rules of the contract."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hrm.data.config import ConversionConfig, PuzzlePolicy, Task, WordHash
from hrm.data.conversion import AcceptedPair, Converter, difficulty_of
from hrm.data.vocabulary import Tokenizer
from schemas import Difficulty, HRMExample, MessageRejected, RejectionReason, SQEMessage

TEXTS = st.text(min_size=1, max_size=600) | st.text("start end\n", min_size=1, max_size=1600)
CONFIGS = st.builds(
    ConversionConfig,
    word_hash=st.sampled_from(WordHash),
    puzzle_policy=st.sampled_from([PuzzlePolicy.LINE_INDEX, PuzzlePolicy.PROMPT_HASH]),
    puzzle_space=st.integers(1, 2000),
)
OPTIONAL_IDS = st.none() | st.integers(0, 10**12)


def by_line(space: int = 1000) -> Converter:
    return Converter(ConversionConfig(puzzle_policy=PuzzlePolicy.LINE_INDEX, puzzle_space=space))


def test_an_example_equals_one_made_by_hand() -> None:
    example = by_line().convert("Test the agent data", "Restart end-to-end security", line_index=3)
    the = int("8fc42c6ddf9966db3b09e84365034357", 16) % 9 + 1  # by md5sum
    assert example.model_dump(mode="json") == {
        "puzzle_id": 3,
        "input_sequence": [0, 1, the, 2, 3, 11],
        "target_sequence": [0, 0, 11, 4, 11],
        "solution_steps": [
            {"action": 0, "state": None},
            {"action": 1, "state": None},
            {"action": 0, "state": None},
            {"action": 1, "state": None},
            {"action": 0, "state": None},
        ],
        "metadata": {
            "source": "sqe_agent",
            "prompt_length": 19,
            "completion_length": 27,
            "difficulty": "easy",
        },
    }


@pytest.mark.parametrize(
    ("characters", "difficulty"),
    [
        (2, Difficulty.EASY),
        (499, Difficulty.EASY),
        (500, Difficulty.MEDIUM),
        (1499, Difficulty.MEDIUM),
        (1500, Difficulty.HARD),
    ],
)
def test_difficulty_depends_on_the_number_of_characters(
    characters: int, difficulty: Difficulty
) -> None:
    assert difficulty_of(characters) is difficulty


def test_lengths_count_characters_and_not_bytes() -> None:
    metadata = by_line().convert("é" * 250, "日本" * 124, line_index=0).metadata
    assert (metadata.prompt_length, metadata.completion_length) == (250, 248)
    assert metadata.difficulty is Difficulty.EASY


@given(TEXTS, TEXTS)
def test_steps_alternate_along_the_shorter_sequence(prompt: str, completion: str) -> None:
    example = by_line().convert(prompt, completion, line_index=0)
    shorter = min(len(example.input_sequence), len(example.target_sequence))
    assert [step.action for step in example.solution_steps] == [n % 2 for n in range(shorter)]


@given(CONFIGS, TEXTS, TEXTS, OPTIONAL_IDS)
def test_sequences_come_from_the_tokenizer(
    config: ConversionConfig, prompt: str, completion: str, puzzle_id: int | None
) -> None:
    example = Converter(config).convert(prompt, completion, puzzle_id, 0)
    tokenizer = Tokenizer(config)
    assert example.input_sequence == tuple(tokenizer.sequence(prompt))
    assert example.target_sequence == tuple(tokenizer.sequence(completion))


@given(CONFIGS, TEXTS, TEXTS, OPTIONAL_IDS, st.integers(0, 10**9))
def test_the_fast_path_gives_the_same_json(
    config: ConversionConfig, prompt: str, completion: str, puzzle_id: int | None, line_index: int
) -> None:
    converter = Converter(config)
    line = converter.convert_to_json(prompt, completion, puzzle_id, line_index)
    example = converter.convert(prompt, completion, puzzle_id, line_index)
    assert line == example.model_dump_json()
    assert HRMExample.model_validate_json(line) == example


def test_json_keys_follow_the_order_of_the_contract() -> None:
    example = json.loads(by_line().convert_to_json("a", "b", line_index=0))
    assert list(example) == [
        "puzzle_id",
        "input_sequence",
        "target_sequence",
        "solution_steps",
        "metadata",
    ]
    assert list(example["solution_steps"][0]) == ["action", "state"]
    assert list(example["metadata"]) == [
        "source",
        "prompt_length",
        "completion_length",
        "difficulty",
    ]


def test_a_message_keeps_its_own_puzzle_id() -> None:
    message = SQEMessage.create(agent_id="a", prompt="p", completion="c", puzzle_id=95_995)
    assert by_line().example_of(message, line_index=7).puzzle_id == 95_995
    assert Converter(ConversionConfig()).example_of(message).puzzle_id == 95_995


def test_a_converted_example_is_returned_as_it_is() -> None:
    example = by_line().convert("p", "c", 7)
    assert by_line().example_of(example, line_index=3) is example


def test_zero_is_a_puzzle_id_too() -> None:
    assert by_line().puzzle_id_for("p", 0, 7) == 0


@pytest.mark.parametrize(("line_index", "puzzle_id"), [(0, 0), (999, 999), (1000, 0), (2001, 1)])
def test_a_line_gets_its_index_modulo_the_puzzle_space(line_index: int, puzzle_id: int) -> None:
    assert by_line().puzzle_id_for("p", None, line_index) == puzzle_id


def test_a_prompt_gets_its_md5_modulo_the_puzzle_space_whatever_the_word_hash() -> None:
    config = ConversionConfig(word_hash=WordHash.SHA256, puzzle_space=1000)
    # Computed with md5sum.
    expected = int("5d41402abc4b2a76b9719d911017c592", 16) % 1000
    assert Converter(config).puzzle_id_for("hello", None, 12) == expected


def test_the_line_policy_without_a_line_demands_a_puzzle_id() -> None:
    with pytest.raises(MessageRejected, match="'puzzle_id'") as caught:
        by_line().convert("p", "c")
    assert caught.value.reason is RejectionReason.MISSING_FIELD


# Tasks.

TASKS = ConversionConfig(
    puzzle_policy=PuzzlePolicy.TASK,
    puzzle_space=10,
    tasks=(Task(name="plan", row=12), Task(name="x", row=10)),
)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"task": "plan"}, 12),
        ({"task": "x"}, 10),
        ({"task": "unknown"}, None),
        ({"task": "plan", "puzzle_id": 3}, 3),
        ({"puzzle_id": 3}, 3),
        ({}, None),
    ],
)
def test_a_task_names_its_row_and_a_puzzle_id_goes_before_it(
    fields: dict[str, Any], named: int | None
) -> None:
    converter = Converter(TASKS)
    message = SQEMessage.create(agent_id="a", prompt="p", completion="c", **fields)
    pair = AcceptedPair(prompt="p", completion="c", **fields)
    assert converter.named_puzzle(message) == converter.named_puzzle(pair) == named
    by_hash = Converter(ConversionConfig(puzzle_space=10)).puzzle_id_for("p")
    assert converter.example_of(pair).puzzle_id == (by_hash if named is None else named)
    assert converter.named_puzzle(converter.example_of(pair)) is None


@pytest.mark.parametrize(
    ("policy", "rows", "problem"),
    [
        ("task", (), "the puzzle policy task has them"),
        ("prompt_hash", (("a", 20),), "the puzzle policy task has them"),
        ("task", (("a", 20), ("a", 21)), "a twice"),
        ("task", (("a", 20), ("b", 20)), "20 twice"),
        ("task", (("a", 9),), "below puzzle_space"),
        ("task", (("a b", 20),), "pattern"),
    ],
)
def test_tasks_that_cannot_be_told_apart_are_refused(
    policy: str, rows: tuple[tuple[str, int], ...], problem: str
) -> None:
    tasks = [{"name": name, "row": row} for name, row in rows]
    fields = {"puzzle_space": 10, "puzzle_policy": policy, "tasks": tasks}
    with pytest.raises(ValidationError, match=problem):
        ConversionConfig.model_validate(fields)


def test_a_conversion_with_tasks_is_read_as_it_was_written() -> None:
    assert ConversionConfig.model_validate_json(TASKS.model_dump_json()) == TASKS
    assert "tasks" not in ConversionConfig().model_dump()
    assert "tasks" not in ConversionConfig(version=2).model_dump()


WORDS = ConversionConfig(version=2, hashed_tokens=400, puzzle_space=10)


def found(*templates: tuple[str, int]) -> Converter:
    """A converter with tasks that were found, each by the words of its template."""
    words = Converter(WORDS).words
    tasks = [Task(name=f"found-{row}", row=row, template=words(text)) for text, row in templates]
    return Converter(
        WORDS.model_copy(update={"puzzle_policy": PuzzlePolicy.TASK, "tasks": tuple(tasks)})
    )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": "Plan the load test of the big shop"}, 11),
        ({"prompt": "plan the load of the shop"}, 11),
        ({"prompt": "plan the release test of the shop now"}, 12),
        ({"prompt": "the plan of shop the"}, None),
        ({"prompt": "plan one two the three four of five six the shop"}, None),
        ({"prompt": "plan the load test of the shop", "puzzle_id": 3}, 3),
        ({"prompt": "plan the load test of the shop", "task": "found-12"}, 12),
        ({"prompt": "plan the load test of the shop", "task": "unknown"}, 11),
    ],
)
def test_a_prompt_that_fits_a_template_has_its_row(
    fields: dict[str, Any], named: int | None
) -> None:
    converter = found(("plan the of the shop", 11), ("plan the release of the shop", 12))
    pair = AcceptedPair(completion="c", **fields)
    assert converter.named_puzzle(pair) == named
