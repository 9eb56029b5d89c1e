"""hrm.checkpoint.solved: the same texts and flags as the whole file has, read without torch."""

from pathlib import Path

import pytest
import torch

from hrm.checkpoint.names import CheckpointError
from hrm.checkpoint.pairs import AcceptedPairs
from hrm.checkpoint.solved import ACCEPTED_PAIRS, read_solved_texts
from schemas import HaltedBy

SHIPPED = Path(__file__).parents[4] / "checkpoints"

NAMES = ("sqe-demo", "sqe-demo-2", "sqe-demo-600")


def pairs_of(name: str) -> AcceptedPairs:
    file = SHIPPED / name / ACCEPTED_PAIRS
    pairs = AcceptedPairs.read(file, 512 if name == "sqe-demo-2" else 12)
    assert pairs is not None
    return pairs


@pytest.mark.parametrize("name", NAMES)
def test_the_texts_that_both_rules_solve_are_solved(name: str) -> None:
    pairs = pairs_of(name)
    assert pairs.solved is not None
    both = (pairs.solved[HaltedBy.Q] & pairs.solved[HaltedBy.MAX_STEPS]).tolist()
    found = read_solved_texts(SHIPPED / name / ACCEPTED_PAIRS)
    assert found is not None
    assert found.digest == pairs.solved_by
    texts = [each.texts for each in pairs]
    assert found.solved == {text for text, flag in zip(texts, both, strict=True) if flag}
    assert found.unsolved == set(texts) - found.solved


@pytest.mark.parametrize("rule", HaltedBy)
def test_what_one_rule_does_not_solve_is_unsolved(tmp_path: Path, rule: HaltedBy) -> None:
    pairs = pairs_of("sqe-demo")
    flags = {each: torch.ones(len(pairs), dtype=torch.bool) for each in HaltedBy}
    flags[rule][3] = False
    pairs.measured(flags, "digest").write(tmp_path / ACCEPTED_PAIRS)
    found = read_solved_texts(tmp_path / ACCEPTED_PAIRS)
    assert found is not None
    assert found.unsolved == {list(pairs)[3].texts}
    assert len(found.solved) == len(pairs) - 1


def test_without_a_file_or_flags_nothing_is_known(tmp_path: Path) -> None:
    file = tmp_path / ACCEPTED_PAIRS
    assert read_solved_texts(file) is None
    AcceptedPairs.of(pairs_of("sqe-demo"), 12).write(file)
    assert read_solved_texts(file) is None


@pytest.mark.parametrize("cut", [0, 7, 8, 100, 18_200, 22_000])
def test_a_damaged_file_is_named(tmp_path: Path, cut: int) -> None:
    file = tmp_path / ACCEPTED_PAIRS
    content = (SHIPPED / "sqe-demo" / ACCEPTED_PAIRS).read_bytes()
    file.write_bytes(content[:cut])
    with pytest.raises(CheckpointError, match="damaged") as caught:
        read_solved_texts(file)
    assert str(file) in str(caught.value)


def test_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    (tmp_path / ACCEPTED_PAIRS).mkdir()
    with pytest.raises(CheckpointError, match="damaged"):
        read_solved_texts(tmp_path / ACCEPTED_PAIRS)
