"""The accepted pairs of a checkpoint: written, read, united, and never trusted when damaged."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hrm.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from hrm.checkpoint.names import other_weights, weights_file
from hrm.checkpoint.pairs import AcceptedExample, AcceptedPairs, with_answer_rows
from hrm.checkpoint.record import pair_hash
from hrm.checkpoint.solved import ACCEPTED_PAIRS
from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from hrm.data.texts import TextHashes
from hrm.training.examples import training_record
from schemas import HaltedBy
from tests.support.checkpoints import ANSWERS, RECORD, SHA256, TINY, saved, state_of

CONVERTERS = {version: Converter(ConversionConfig(version=version)) for version in (1, 2)}
TOKENS = {version: each.tokenizer.vocabulary.size for version, each in CONVERTERS.items()}
WEIGHTS = "a" * 64


def accepted(
    prompt: str, completion: str, puzzle_id: int = 3, *, version: int = 1, line: int = 0
) -> AcceptedExample:
    example = CONVERTERS[version].convert(prompt, completion, puzzle_id)
    pair = pair_hash(puzzle_id, example.input_sequence)
    return AcceptedExample(line, example, pair, TextHashes.of(prompt, completion))


EXAMPLES = [
    accepted("security", "agent test"),
    replace(accepted("security", "agent"), alternative=True, unread=(0, 7), hashed=True),
    accepted(" ", "agent test", 4),
]
"""The pairs of `RECORD`."""

PAIRS = AcceptedPairs.of(EXAMPLES, 12)
SOLVED = {
    HaltedBy.MAX_STEPS: torch.tensor([True, True, False]),
    HaltedBy.Q: torch.tensor([True, False, False]),
}


def read(file: Path, vocabulary: int = 12) -> AcceptedPairs:
    pairs = AcceptedPairs.read(file, vocabulary)
    assert pairs is not None
    return pairs


# Content.


def test_pairs_are_read_as_they_were_written(tmp_path: Path) -> None:
    PAIRS.write(tmp_path / ACCEPTED_PAIRS)
    pairs = read(tmp_path / ACCEPTED_PAIRS)
    assert list(pairs) == EXAMPLES
    assert len(pairs) == 3
    assert pairs.solved_with(WEIGHTS) is None


@given(
    st.lists(
        st.tuples(
            st.text("agent send ä7", min_size=1).filter(str.strip),
            st.text("the test ", min_size=1).filter(str.strip),
            st.integers(0, 2**40),
        ),
        unique=True,
    )
)
def test_any_examples_are_kept(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str, int]]
) -> None:
    examples = [accepted(*each, version=2) for each in texts]
    file = tmp_path_factory.mktemp("pairs") / ACCEPTED_PAIRS
    AcceptedPairs.of(examples, TOKENS[2]).write(file)
    assert list(read(file, TOKENS[2])) == examples


def test_a_target_of_several_parts_is_kept_whole(tmp_path: Path) -> None:
    long = accepted("plan", "word " * 6_000, version=2)
    AcceptedPairs.of([long], TOKENS[2]).write(tmp_path / ACCEPTED_PAIRS)
    (found,) = read(tmp_path / ACCEPTED_PAIRS, TOKENS[2])
    assert found == long
    assert len(found.example.target_sequence) == 6_002


def test_the_file_holds_no_text(tmp_path: Path) -> None:
    PAIRS.write(tmp_path / ACCEPTED_PAIRS)
    content = (tmp_path / ACCEPTED_PAIRS).read_bytes()
    assert b"security" not in content
    assert bytes.fromhex(EXAMPLES[0].texts.prompt) in content


def test_no_pairs_are_pairs(tmp_path: Path) -> None:
    AcceptedPairs.of([], 12).write(tmp_path / ACCEPTED_PAIRS)
    assert list(read(tmp_path / ACCEPTED_PAIRS)) == []
    assert AcceptedPairs.read(tmp_path / "none", 12) is None


def test_equal_examples_are_one_and_an_alternative_stays_declared() -> None:
    again = [replace(each, line=9, alternative=True) for each in EXAMPLES[:1]]
    pairs = AcceptedPairs.of([*EXAMPLES, *again], 12)
    assert list(pairs) == [replace(EXAMPLES[0], alternative=True), *EXAMPLES[1:]]


def test_a_union_has_the_pairs_of_both_once() -> None:
    new = accepted("data", "test", 5)
    union = PAIRS.measured(SOLVED, WEIGHTS).union(AcceptedPairs.of([EXAMPLES[1], new], 12))
    assert list(union) == [*EXAMPLES, new]
    assert union.solved is None


def test_a_pair_and_its_target_lead_to_the_row_that_holds_it() -> None:
    rows = [each.puzzle_id for each in with_answer_rows(EXAMPLES, ANSWERS)]
    assert rows == [3, 2, 4]
    assert ANSWERS[EXAMPLES[1].pair][EXAMPLES[1].target] == 2
    assert {each.pair for each in PAIRS} == RECORD.pair_hashes


# What is solved.


def test_flags_are_those_of_the_weights_that_they_were_measured_with(tmp_path: Path) -> None:
    PAIRS.measured(SOLVED, WEIGHTS).write(tmp_path / ACCEPTED_PAIRS)
    pairs = read(tmp_path / ACCEPTED_PAIRS)
    flags = pairs.solved_with(WEIGHTS)
    assert flags is not None
    assert {rule: flags[rule].tolist() for rule in flags} == {
        rule: SOLVED[rule].tolist() for rule in HaltedBy
    }
    assert pairs.solved_with("b" * 64) is None


def test_every_pair_needs_a_flag() -> None:
    with pytest.raises(ValueError, match="one flag for each of 3 pairs"):
        PAIRS.measured({rule: torch.ones(2) for rule in HaltedBy}, WEIGHTS)


# Beside the weights.


def test_a_checkpoint_keeps_its_pairs(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state_of(TINY), TINY, SHA256, RECORD, PAIRS)
    checkpoint = load_checkpoint(tmp_path)
    pairs = checkpoint.accepted_pairs()
    assert pairs is not None
    assert list(pairs) == EXAMPLES
    assert weights_file(tmp_path).name == "model.safetensors"
    assert other_weights(tmp_path) == []
    modes = {file.stat().st_mode for file in tmp_path.iterdir()}
    assert len(modes) == 1
    saved(tmp_path)
    assert load_checkpoint(tmp_path).accepted_pairs() is None


def test_pairs_of_another_checkpoint_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    AcceptedPairs.of(EXAMPLES[2:], 12).write(tmp_path / ACCEPTED_PAIRS)
    with pytest.raises(CheckpointError, match=r"its pairs are not those of training_pairs\.json"):
        load_checkpoint(tmp_path).accepted_pairs()


# Damage.


def refusal(file: Path, vocabulary: int = 12) -> str:
    with pytest.raises(CheckpointError) as caught:
        AcceptedPairs.read(file, vocabulary)
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith(f"{file}: ")
    assert line.endswith("remove it and write it again with sqe-hrm checkpoint record")
    return line


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda content: content[:-1],
        lambda content: content[:40],
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content.replace(b'format_version\\":1', b'format_version\\":2'),
        lambda _: b"{}",
    ],
)
def test_a_damaged_file_and_one_of_another_version_are_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / ACCEPTED_PAIRS
    PAIRS.write(file)
    sound = file.read_bytes()
    file.write_bytes(damage(sound))
    assert file.read_bytes() != sound
    assert "damaged, or of another version" in refusal(file)


def test_weights_are_no_pairs(tmp_path: Path) -> None:
    assert "damaged, or of another version" in refusal(weights_file(saved(tmp_path)))


def changed(file: Path, **tensors: Tensor | None) -> None:
    """Replace tensors of the file, or remove those that are None."""
    PAIRS.measured(SOLVED, WEIGHTS).write(file)
    with safe_open(file, framework="pt") as stored:
        header = stored.metadata()
    content = load_file(file) | {name.replace("__", "."): each for name, each in tensors.items()}
    save_file({name: each for name, each in content.items() if each is not None}, file, header)


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"alternative": None}, "not just what belongs there: alternative"),
        ({"more": torch.ones(1)}, "not just what belongs there: more"),
        ({"solved__q": None}, "not just what belongs there: solved.q"),
        ({"solved__q": torch.ones(2, dtype=torch.uint8)}, "solved.q is not torch.uint8 of shape"),
        ({"puzzle_ids": torch.ones(3)}, "puzzle_ids is not torch.int64 of shape (3,)"),
        ({"puzzle_ids": torch.tensor([3, -1, 4])}, "a negative puzzle"),
        ({"unread_words": torch.ones((3, 1), dtype=torch.int32)}, "unread_words is not "),
        (
            {"input_lengths": torch.tensor([3, 3, 3], dtype=torch.int32)},
            "input_tokens is not torch.uint16 of shape (9,)",
        ),
        (
            {"input_lengths": torch.tensor([7, 0, 1], dtype=torch.int32)},
            "a length in input_lengths is not from 2 to 100",
        ),
        (
            {"target_tokens": torch.full((11,), 12, dtype=torch.int32).to(torch.uint16)},
            "token 12, but the checkpoint's conversion has 12",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor | None], problem: str
) -> None:
    changed(tmp_path / ACCEPTED_PAIRS, **tensors)
    assert problem in refusal(tmp_path / ACCEPTED_PAIRS)


def test_pairs_of_another_conversion_are_refused(tmp_path: Path) -> None:
    PAIRS.write(tmp_path / ACCEPTED_PAIRS)
    problem = "for 12 tokens, but the checkpoint's conversion has 1024"
    assert problem in refusal(tmp_path / ACCEPTED_PAIRS, 1024)


def test_a_folder_that_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        PAIRS.write(tmp_path / "file" / ACCEPTED_PAIRS)
    assert "damaged" in refusal(tmp_path)


def test_a_record_is_that_of_the_pairs() -> None:
    record = training_record(list(PAIRS))
    assert record.pair_hashes == RECORD.pair_hashes
    assert record.accepted is not None
    assert RECORD.accepted is not None
    assert record.accepted.texts == RECORD.accepted.texts
