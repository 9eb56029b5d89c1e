"""All training pairs are counted only if each occurs, with one completion that was accepted."""

from hrm.checkpoint import TrainingRecord, pair_hash
from hrm.checkpoint.record import target_hash
from hrm.data.conversion import Converter
from hrm.evaluation.coverage import PairCoverage
from schemas import HRMExample, TextCheck
from tests.support.checkpoints import ACCEPTED, SHA256


def example(puzzle: int, completion: str = "agent") -> HRMExample:
    return Converter(SHA256).convert("test", completion, puzzle)


def coverage(*puzzles: int) -> PairCoverage:
    return PairCoverage(record(*puzzles))


def record(*puzzles: int) -> TrainingRecord:
    known = [example(puzzle) for puzzle in puzzles]
    return TrainingRecord(
        format_version=1,
        pair_hashes=frozenset(pair_hash(each.puzzle_id, each.input_sequence) for each in known),
        target_token_counts=(0,) * 12,
    )


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


def test_every_accepted_answer_has_to_occur_and_no_other() -> None:
    both = example(1), example(1, "data")
    rows = {target_hash(each.target_sequence): row for row, each in enumerate(both)}
    answers = {pair_hash(1, both[0].input_sequence): rows}
    accepted = ACCEPTED.model_copy(update={"answers": answers})
    pairs = PairCoverage(record(1, 2).model_copy(update={"accepted": accepted}))
    for each in (example(2), *both):
        assert not pairs.complete
        pairs.add(each, TextCheck.SAME)
    assert pairs.complete
    pairs.add(example(1, "third"), TextCheck.UNKNOWN)
    assert not pairs.complete


def test_without_pairs_nothing_is_complete() -> None:
    assert not coverage().complete
