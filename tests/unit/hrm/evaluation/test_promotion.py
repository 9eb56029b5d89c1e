"""The pairs lost when a checkpoint takes the place of another, by the answers of both."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from hrm.checkpoint import pair_hash
from hrm.checkpoint.checkpoint import Checkpoint
from hrm.checkpoint.registry import PromotionFigures
from hrm.data.config import ConversionConfig, PuzzlePolicy, Task
from hrm.data.conversion import AcceptedPair, Content
from hrm.evaluation.promotion import Comparison, Loss, compare_on_pairs, reads_alike
from hrm.inference.config import Inference
from schemas import HaltedBy, HRMExample
from tests.support.checkpoints import SHA256
from tests.support.promotions import EARLY, LATE, saved_with, solved_by

BOTH = (HaltedBy.MAX_STEPS, HaltedBy.Q)
HELD = solved_by(EARLY, 12)
_INPUTS = {each.input_sequence for each in HELD}
MORE = [each for each in solved_by(EARLY, 20, start=100) if each.input_sequence not in _INPUTS]


def compare(
    old: Checkpoint | None,
    new: Checkpoint,
    lines: Sequence[Content] = (),
    held: Sequence[HRMExample] | None = HELD,
    rules: Sequence[HaltedBy] = (HaltedBy.Q,),
) -> Comparison:
    return compare_on_pairs(old, new, enumerate(lines), held, rules, Inference(slots=4))


def counts(figures: PromotionFigures) -> dict[str, int]:
    """The counts that are not 0."""
    shown = figures.model_dump(exclude={"halting"})
    return {name: count for name, count in shown.items() if count}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return saved_with(tmp_path_factory.mktemp("old") / "old", EARLY, HELD)


def test_nothing_is_lost_by_a_checkpoint_that_holds_all_and_more(
    old: Checkpoint, tmp_path: Path
) -> None:
    new = saved_with(tmp_path / "new", EARLY, [*HELD, *MORE])
    compared = compare(old, new, rules=BOTH)
    assert not compared.lost
    assert [each.halting for each in compared.figures] == list(BOTH)
    for figures in compared.figures:
        assert counts(figures) == {"pairs": len(HELD), "both": len(HELD)}


def test_pairs_that_the_new_one_answers_otherwise_are_lost(old: Checkpoint, tmp_path: Path) -> None:
    new = saved_with(tmp_path / "new", LATE, HELD)
    compared = compare(old, new, rules=BOTH)
    (figures, _) = compared.figures
    assert counts(figures) == {
        "pairs": len(HELD),
        "only_old": len(compared.lost),
        **({"both": figures.both} if figures.both else {}),
    }
    assert figures.lost == len(compared.lost) > 6
    assert {(each.loss, each.rules) for each in compared.lost} == {(Loss.NOT_SOLVED, BOTH)}
    pairs = {pair_hash(each.puzzle_id, each.input_sequence): each.puzzle_id for each in HELD}
    for each in compared.lost:
        assert (pairs[each.pair], each.line, each.prompt) == (each.puzzle_id, None, None)


def test_solved_pairs_that_the_new_one_was_not_trained_on_are_lost(
    old: Checkpoint, tmp_path: Path
) -> None:
    new = saved_with(tmp_path / "new", EARLY, HELD[2:])
    compared = compare(old, new)
    (figures,) = compared.figures
    assert counts(figures) == {"pairs": len(HELD), "both": len(HELD), "unknown": 2}
    assert [each.loss for each in compared.lost] == [Loss.UNKNOWN] * 2
    assert figures.lost == 2


def test_pairs_that_neither_was_trained_on_are_not_missed(old: Checkpoint, tmp_path: Path) -> None:
    new = saved_with(tmp_path / "new", EARLY, HELD)
    compared = compare(old, new, lines=MORE)
    assert not compared.lost
    assert counts(compared.figures[0])["both"] == len(HELD) + len(MORE)


def test_the_new_one_alone_is_measured_if_there_is_no_old_one(old: Checkpoint) -> None:
    (figures,) = compare(None, old).figures
    assert counts(figures) == {"pairs": len(HELD), "only_new": len(HELD)}


def test_a_file_says_what_is_accepted_for_its_prompts(old: Checkpoint, tmp_path: Path) -> None:
    # The completion of the first prompt was replaced by another one.
    replaced = HELD[0].model_copy(update={"target_sequence": (*HELD[0].target_sequence[:-1], 5)})
    assert replaced != HELD[0]
    new = saved_with(tmp_path / "new", EARLY, HELD)
    (figures,) = compare(old, new, lines=[replaced]).figures
    assert counts(figures) == {"pairs": len(HELD), "both": len(HELD) - 1, "neither": 1}


def test_repeated_lines_count_once(old: Checkpoint, tmp_path: Path) -> None:
    new = saved_with(tmp_path / "new", EARLY, HELD)
    (figures,) = compare(old, new, lines=[*MORE, *MORE, *HELD]).figures
    assert figures.pairs == len(HELD) + len(MORE)


def test_recorded_pairs_that_nobody_has_are_lost(old: Checkpoint, tmp_path: Path) -> None:
    new = saved_with(tmp_path / "new", EARLY, HELD)
    compared = compare(old, new, lines=HELD[3:], held=None)
    assert counts(compared.figures[0]) == {
        "pairs": len(HELD) - 3,
        "both": len(HELD) - 3,
        "unjudged": 3,
    }
    assert {each.pair for each in compared.lost} == {
        pair_hash(each.puzzle_id, each.input_sequence) for each in HELD[:3]
    }
    assert {(each.loss, each.puzzle_id) for each in compared.lost} == {(Loss.NOT_IN_FILE, None)}


def test_messages_that_a_checkpoint_cannot_read_are_not_solved(
    old: Checkpoint, tmp_path: Path
) -> None:
    new = saved_with(tmp_path / "new", EARLY, HELD)
    long = AcceptedPair(prompt="word " * 50, completion="a")
    beyond = AcceptedPair(prompt="test", completion="a", puzzle_id=10**6)
    (figures,) = compare(old, new, lines=[long, beyond], held=()).figures
    assert counts(figures) == {"pairs": 2, "neither": 2}


# Conversions.


HASHED = ConversionConfig(version=2, puzzle_space=50)
TASKS = HASHED.model_copy(
    update={"puzzle_policy": PuzzlePolicy.TASK, "tasks": (Task(name="a", row=60),)}
)


def with_task(**fields: object) -> ConversionConfig:
    tasks = (*TASKS.tasks, Task.model_validate({"name": "b", "row": 61, **fields}))
    return TASKS.model_copy(update={"tasks": tasks})


@pytest.mark.parametrize(
    ("old", "new", "alike"),
    [
        (HASHED, HASHED, True),
        (HASHED, TASKS, True),
        (TASKS, with_task(), True),
        (TASKS, with_task(template=(3, 4)), False),
        (TASKS, HASHED, False),
        (TASKS, with_task(row=60), True),
        (with_task(), TASKS, False),
        (with_task(), with_task(row=62), False),
        (HASHED, HASHED.model_copy(update={"hashed_tokens": 9}), False),
        (HASHED, HASHED.model_copy(update={"puzzle_space": 9}), False),
        (HASHED, HASHED.model_copy(update={"case_sensitive": True}), False),
        (HASHED, ConversionConfig(puzzle_space=50), False),
        (SHA256, SHA256.model_copy(update={"puzzle_policy": PuzzlePolicy.PROMPT_HASH}), False),
    ],
)
def test_pairs_are_the_same_to_a_conversion_that_chooses_tokens_and_puzzles_alike(
    old: ConversionConfig, new: ConversionConfig, *, alike: bool
) -> None:
    assert reads_alike(old, new) is alike
