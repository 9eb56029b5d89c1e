"""All training pairs are counted only if each occurs, with one completion that was accepted."""

from hrm.checkpoint import pair_hash
from hrm.data.conversion import Converter
from hrm.evaluation.coverage import PairCoverage
from schemas import HRMExample, TextCheck
from tests.support.checkpoints import SHA256


def example(puzzle: int, completion: str = "agent") -> HRMExample:
    return Converter(SHA256).convert("test", completion, puzzle)


def coverage(*puzzles: int) -> PairCoverage:
    known = map(example, puzzles)
    return PairCoverage({pair_hash(each.puzzle_id, each.input_sequence) for each in known})


def test_every_pair_has_to_occur_and_others_do_not_matter() -> None:
    pairs = coverage(1, 2)
    assert pairs.add(example(1), TextCheck.SAME)
    assert not pairs.complete
    assert not pairs.add(example(3), TextCheck.UNKNOWN)
    assert not pairs.complete
    assert pairs.add(example(2), TextCheck.NORMALISED)
    assert pairs.complete


def test_a_repeat_changes_nothing_and_another_target_does() -> None:
    pairs = coverage(1)
    pairs.add(example(1), TextCheck.UNKNOWN)
    pairs.add(example(1), TextCheck.UNKNOWN)
    assert pairs.complete
    pairs.add(example(1, "data"), TextCheck.UNKNOWN)
    assert not pairs.complete


def test_a_completion_that_was_not_accepted_is_a_sample_of_changes() -> None:
    pairs = coverage(1)
    pairs.add(example(1), TextCheck.DIFFERENT)
    assert not pairs.complete


def test_without_pairs_nothing_is_complete() -> None:
    assert not coverage().complete
