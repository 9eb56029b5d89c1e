"""The pairs of a self-test: a few that a checkpoint is recorded to solve, computed anew."""

from contextlib import closing
from pathlib import Path

import pytest
import torch

from hrm.checkpoint import Checkpoint
from hrm.checkpoint.solved import ACCEPTED_PAIRS
from hrm.evaluation.evaluator import Evaluator
from hrm.evaluation.known import PAIRS, known_pairs
from hrm.inference.config import Inference
from schemas import HaltedBy, HRMExample
from tests.support.promotions import EARLY, LATE, ONE_STEP, saved_with, solved_by

RULE = HaltedBy.MAX_STEPS


@pytest.fixture(scope="module")
def solved() -> list[HRMExample]:
    """Pairs that `EARLY` solves."""
    return solved_by(EARLY, 20)


def write_flags(checkpoint: Checkpoint, rule: HaltedBy, solved: torch.Tensor) -> None:
    pairs = checkpoint.accepted_pairs()
    assert pairs is not None
    flags = {each: torch.zeros(len(pairs)) for each in HaltedBy} | {rule: solved}
    file = checkpoint.path.parent / ACCEPTED_PAIRS
    pairs.measured(flags, checkpoint.digest).write(file)


def test_the_pairs_are_few_spread_and_always_the_same(
    tmp_path: Path, solved: list[HRMExample]
) -> None:
    checkpoint = saved_with(tmp_path, EARLY, solved, recorded=True)
    chosen = known_pairs([checkpoint], RULE)
    assert len(chosen) == PAIRS
    assert [each.input_sequence for each in known_pairs([checkpoint], RULE)] == [
        each.input_sequence for each in chosen
    ]
    places = [
        number
        for number, each in enumerate(solved)
        if (each.puzzle_id, each.input_sequence)
        in {(one.puzzle_id, one.input_sequence) for one in chosen}
    ]
    assert places[0] == 0
    assert places[-1] >= len(solved) - len(solved) // PAIRS - 1


def test_only_pairs_are_chosen_that_are_solved_under_the_rule(
    tmp_path: Path, solved: list[HRMExample]
) -> None:
    checkpoint = saved_with(tmp_path, EARLY, solved)
    assert known_pairs([checkpoint], RULE) == [], "nobody recorded what is solved"
    flags = torch.zeros(len(solved))
    flags[[1, 3]] = 1
    write_flags(checkpoint, HaltedBy.Q, flags)
    chosen = known_pairs([checkpoint], HaltedBy.Q)
    assert [each.target_sequence for each in chosen] == [
        solved[1].target_sequence,
        solved[3].target_sequence,
    ]
    assert known_pairs([checkpoint], HaltedBy.MAX_STEPS) == []
    assert known_pairs([checkpoint], HaltedBy.Q, ONE_STEP.halt_max_steps) == chosen
    assert known_pairs([checkpoint], HaltedBy.Q, ONE_STEP.halt_max_steps + 1) == []


def test_a_record_of_other_weights_says_nothing(tmp_path: Path, solved: list[HRMExample]) -> None:
    saved_with(tmp_path / "early", EARLY, solved, recorded=True)
    late = saved_with(tmp_path / "late", LATE, solved)
    (tmp_path / "early" / ACCEPTED_PAIRS).replace(tmp_path / "late" / ACCEPTED_PAIRS)
    assert known_pairs([late], RULE) == []


def test_several_as_one_are_tested_with_what_all_solve(
    tmp_path: Path, solved: list[HRMExample]
) -> None:
    first = saved_with(tmp_path / "first", EARLY, solved[:6], recorded=True)
    second = saved_with(tmp_path / "second", LATE, solved[4:], recorded=True)
    chosen = known_pairs([first, second], RULE)
    assert [each.input_sequence for each in chosen] == [each.input_sequence for each in solved[4:6]]


@pytest.mark.parametrize(("state", "count"), [(EARLY, PAIRS), (LATE, 0)], ids=["true", "false"])
def test_a_self_test_computes_each_pair_anew(
    tmp_path: Path, solved: list[HRMExample], state: dict[str, torch.Tensor], count: int
) -> None:
    checkpoint = saved_with(tmp_path, state, solved, recorded=True)
    inference = Inference(slots=4, cached_predictions=100)
    with closing(
        Evaluator(
            checkpoint,
            inference.open(checkpoint, "cpu"),
            device="cpu",
            worker="w",
            known=known_pairs([checkpoint], RULE),
        )
    ) as evaluator:
        for answered in (PAIRS, 2 * PAIRS):
            assert evaluator.self_test() == (count, PAIRS)
            assert evaluator.statistics.answered == answered
        assert evaluator.statistics.cache_misses == 0
