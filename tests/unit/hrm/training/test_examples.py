"""Training examples: which are trained on, which are held out, and what is recorded of them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm.checkpoint.pairs import AcceptedExample
from hrm.checkpoint.record import TrainingRecord, pair_hash
from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from hrm.data.texts import AcceptedTexts, TextHashes
from hrm.training.examples import (
    MAX_PUZZLES,
    TrainingDataError,
    completed_record,
    read_examples,
    split,
    training_record,
)
from tests.support.evaluations import write_jsonl

CONVERTER = Converter(ConversionConfig())


def accepted(line: int, prompt: str, completion: str, puzzle_id: int) -> AcceptedExample:
    example = CONVERTER.convert(prompt, completion, puzzle_id)
    pair = pair_hash(puzzle_id, example.input_sequence)
    return AcceptedExample(line, example, pair, TextHashes.of(prompt, completion))


def examples(count: int) -> list[AcceptedExample]:
    return [accepted(index + 1, "test the agent", "data", index) for index in range(count)]


def refusal(path: Path, excluded: frozenset[str] = frozenset()) -> str:
    with pytest.raises(TrainingDataError) as caught:
        read_examples(path, CONVERTER, excluded=excluded)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_the_largest_puzzle_is_accepted_and_the_next_is_refused(tmp_path: Path) -> None:
    pair = {"prompt": "p", "completion": "c"}
    sound = write_jsonl(tmp_path / "sound", pair | {"puzzle_id": MAX_PUZZLES - 1})
    assert read_examples(sound, CONVERTER)[0].example.puzzle_id == MAX_PUZZLES - 1
    beyond = write_jsonl(tmp_path / "beyond", pair, pair | {"puzzle_id": MAX_PUZZLES})
    assert refusal(beyond) == (
        f"{beyond}: line 2: puzzle_id 1048576 is beyond the largest puzzle table: "
        "number puzzles from 0 to 1048575, or leave it out"
    )
    huge = write_jsonl(tmp_path / "huge", pair | {"puzzle_id": 10**400})
    assert "line 1: puzzle_id 10000000… is beyond" in refusal(huge)


def test_a_training_message_cannot_be_held_out(tmp_path: Path) -> None:
    pairs = [{"prompt": prompt, "completion": "c"} for prompt in ("one", "two", "three")]
    training = read_examples(write_jsonl(tmp_path / "training", *pairs[:2]), CONVERTER)
    known = training_record(training).pair_hashes
    assert (
        len(read_examples(write_jsonl(tmp_path / "new", pairs[2]), CONVERTER, excluded=known)) == 1
    )
    mixed = write_jsonl(tmp_path / "mixed", pairs[2], pairs[1])
    assert refusal(mixed, known).startswith(f"{mixed}: line 2: has the puzzle and input tokens")


@pytest.mark.parametrize("blank", [" ", "\t\n", "\u00a0\u2003"])
@pytest.mark.parametrize("field", ["prompt", "completion"])
def test_a_text_of_white_space_alone_is_refused(tmp_path: Path, field: str, blank: str) -> None:
    pair = {"prompt": "p", "completion": "c"}
    told = refusal(write_jsonl(tmp_path / "data", pair, pair | {field: blank}))
    assert told.startswith(f"{tmp_path / 'data'}: line 2: field '{field}': white space alone, ")
    assert told.endswith(": give words, or remove the line")


def test_a_line_may_declare_its_completion_an_alternative(tmp_path: Path) -> None:
    pair = {"prompt": "p", "completion": "c"}
    path = write_jsonl(tmp_path / "data", pair, pair | {"alternative": True})
    assert [each.alternative for each in read_examples(path, CONVERTER)] == [False, True]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


@given(
    copies=st.lists(st.integers(0, 19), min_size=2, max_size=60).filter(lambda c: len(set(c)) > 1),
    share=st.floats(0.01, 0.5),
    seed=st.integers(0, 9),
)
def test_a_split_divides_the_distinct_pairs(copies: list[int], share: float, seed: int) -> None:
    pool = examples(20)
    given_ = [pool[index] for index in copies]
    training, held_out = split(given_, share, seed)
    known, unknown = ({example.pair for example in part} for part in (training, held_out))
    assert not known & unknown
    assert len(unknown) == max(1, round(share * len(set(copies))))
    kept = iter(training), iter(held_out)
    assert [next(kept[example.pair in unknown]) for example in given_] == given_
    assert (training, held_out) == split(given_, share, seed)


def test_the_seed_decides_the_draw() -> None:
    drawn = {tuple(e.pair for e in split(examples(20), 0.25, seed)[1]) for seed in range(5)}
    assert {len(hashes) for hashes in drawn} == {5}
    assert len(drawn) > 1


def test_a_split_that_leaves_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(
        TrainingDataError, match=r"^1 distinct messages are too few to hold out 0.2"
    ):
        split(examples(1) * 9, 0.2, 0)


# The record.


def test_a_message_is_read_with_the_hashes_of_its_texts(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "data", "", {"prompt": "Test it", "completion": "data", "puzzle_id": 3}
    )
    assert read_examples(path, CONVERTER) == [accepted(2, "Test it", "data", 3)]


def test_a_record_holds_what_was_accepted_and_no_text() -> None:
    both = "security", "one two"
    record = training_record(
        [
            accepted(1, *both, 3),
            accepted(2, "security", "one", 3),
            accepted(3, "security", "one", 3),
            accepted(4, "deploy", "a b c", 9),
        ]
    )
    assert record.format_version == 2
    assert record.accepted is not None
    known, other = accepted(1, *both, 3).pair, accepted(4, "deploy", "a b c", 9).pair
    assert record.pair_hashes == {known, other}
    assert record.accepted.target_lengths == {known: (3, 4), other: (5,)}
    assert record.accepted.puzzles == {3, 9}
    assert record.accepted.texts == AcceptedTexts.of(
        TextHashes.of(*pair) for pair in (both, ("security", "one"), ("deploy", "a b c"))
    )
    assert TrainingRecord.model_validate_json(record.to_json()) == record
    for word in ("security", "deploy", "one"):
        assert word not in record.to_json()


PAIRS = [
    {"prompt": "security", "completion": "one two"},
    {"prompt": "security", "completion": "three"},
    {"prompt": "deploy", "completion": "a b c"},
]


def first_record(path: Path) -> TrainingRecord:
    """The record of version 1 of a checkpoint that was trained on `path`."""
    record = training_record(read_examples(path, CONVERTER))
    return record.model_copy(update={"format_version": 1, "accepted": None})


def test_a_record_is_completed_by_the_messages_that_it_knows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "data", *PAIRS)
    completed = completed_record(first_record(path), path, CONVERTER)
    assert completed == training_record(read_examples(path, CONVERTER))


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([*PAIRS, {"prompt": "plan", "completion": "x"}], "line 4: not among the recorded"),
        (PAIRS[:2], "lacks 1 of the 2 recorded training pairs: give the whole file"),
        (PAIRS[1:], "its completions have other tokens than the recorded ones: give the file as"),
        ([*PAIRS, "oops"], "line 4: Invalid JSON"),
    ],
)
def test_a_record_is_not_completed_by_other_messages(
    tmp_path: Path, lines: list[object], problem: str
) -> None:
    record = first_record(write_jsonl(tmp_path / "data", *PAIRS))
    path = write_jsonl(tmp_path / "other", *lines)
    with pytest.raises(TrainingDataError) as caught:
        completed_record(record, path, CONVERTER)
    assert str(caught.value).startswith(f"{path}: {problem}")
    assert str(caught.value).isprintable()
