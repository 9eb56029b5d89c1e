"""worker.demo.tally: counts, percentiles, and whether the counts add up."""

import dataclasses

import pytest

from hrm.data.changes import ChangeKind
from schemas import Rejection, RejectionReason, TextCheck
from tests.support.stubs import message, verdict
from worker.demo.tally import Account, Tally, percentile
from worker.demo.traffic import Kind, Sent

REJECTION = Rejection(message_id="a", reason=RejectionReason.NOT_JSON, detail="not JSON")

AGREED = Account(
    sent=5,
    verdicts=3,
    dead_letters=2,
    evaluations_total=3,
    of_agents=3,
    rejected_total=2,
    stream_length=2,
    mistaken=0,
)


def sent(kind: Kind | ChangeKind) -> Sent:
    return Sent("a", kind, "")


def test_solve_rates_are_told_apart_by_kind() -> None:
    tally = Tally()
    tally.note_outcome(sent(Kind.KNOWN), verdict(message("solve")))
    tally.note_outcome(sent(ChangeKind.WORD_REPLACED), verdict(message("fail")))
    tally.note_outcome(sent(ChangeKind.TRUNCATED), verdict(message("solve")))
    assert tally.solve_rate(Kind.KNOWN) == (1, 1)
    assert tally.missed == (1, 2)
    assert tally.patterns.total() == 1
    assert tally.answered == 3


def test_the_text_check_misses_what_it_calls_accepted_and_counts_only_what_it_can_check() -> None:
    tally = Tally()
    for text in TextCheck:
        checked = verdict(message()).model_copy(update={"text": text})
        tally.note_outcome(sent(ChangeKind.TRUNCATED), checked)
    assert tally.missed_by_text(ChangeKind.TRUNCATED) == (2, 3)
    assert tally.missed_by_text(ChangeKind.WORD_REPLACED) == (0, 0)


def test_an_outcome_of_the_wrong_kind_is_noticed() -> None:
    tally = Tally()
    tally.note_outcome(sent(Kind.MALFORMED), REJECTION)
    assert tally.mistaken == 0
    tally.note_outcome(sent(Kind.KNOWN), REJECTION)
    tally.note_outcome(sent(Kind.MALFORMED), verdict(message("solve")))
    assert tally.mistaken == 2


def test_equal_counts_add_up() -> None:
    assert AGREED.adds_up


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Account)])
def test_one_count_that_differs_is_enough(field: str) -> None:
    off_by_one = dataclasses.replace(AGREED, **{field: getattr(AGREED, field) + 1})
    assert not off_by_one.adds_up


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, None), ([2.0], 99, 2.0), ([1.0, 2.0, 3.0], 50, 2.0), ([0.0, 100.0], 99, 99.0)],
)
def test_percentiles(values: list[float], percent: int, expected: float | None) -> None:
    assert percentile(values, percent) == expected
