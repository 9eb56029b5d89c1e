"""Training examples: which are trained on, which are held out, and what is recorded of them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from hrm.training.examples import (
    MAX_PUZZLES,
    TrainingDataError,
    hash_of,
    read_examples,
    split,
    training_record,
)
from schemas import HRMExample
from tests.support.evaluations import write_jsonl

CONVERTER = Converter(ConversionConfig())


def examples(count: int) -> list[HRMExample]:
    return [CONVERTER.convert("test the agent", "data", puzzle_id) for puzzle_id in range(count)]


def refusal(path: Path, excluded: frozenset[str] = frozenset()) -> str:
    with pytest.raises(TrainingDataError) as caught:
        read_examples(path, CONVERTER, excluded=excluded)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_the_largest_puzzle_is_accepted_and_the_next_is_refused(tmp_path: Path) -> None:
    pair = {"prompt": "p", "completion": "c"}
    sound = write_jsonl(tmp_path / "sound", pair | {"puzzle_id": MAX_PUZZLES - 1})
    assert read_examples(sound, CONVERTER)[0].puzzle_id == MAX_PUZZLES - 1
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
    known, unknown = ({hash_of(example) for example in part} for part in (training, held_out))
    assert not known & unknown
    assert len(unknown) == max(1, round(share * len(set(copies))))
    kept = iter(training), iter(held_out)
    assert [next(kept[hash_of(example) in unknown]) for example in given_] == given_
    assert (training, held_out) == split(given_, share, seed)


def test_the_seed_decides_the_draw() -> None:
    drawn = {tuple(hash_of(e) for e in split(examples(20), 0.25, seed)[1]) for seed in range(5)}
    assert {len(hashes) for hashes in drawn} == {5}
    assert len(drawn) > 1


def test_a_split_that_leaves_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(
        TrainingDataError, match=r"^1 distinct messages are too few to hold out 0.2"
    ):
        split(examples(1) * 9, 0.2, 0)
