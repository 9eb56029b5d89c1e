"""worker.delivery.suspicion: what the record of an item's faults says."""

import pytest

from schemas import RejectionReason
from worker.delivery.suspicion import Suspicion


def suspicion(faults: str) -> Suspicion:
    return Suspicion.read(b"digest", faults.encode())


@pytest.mark.parametrize(
    ("faults", "poison"),
    [("- -", []), ("- - 0", []), ("- - 0 0", [0]), ("- - 1 0 0 1 2", [0, 1]), ("- - 11", [])],
)
def test_a_message_is_poison_after_two_faults_alone(faults: str, poison: list[int]) -> None:
    assert [each for each in range(3) if suspicion(faults).is_poison(each)] == poison


@pytest.mark.parametrize(
    ("faults", "unreadable"),
    [("", False), ("- - -", False), ("- - - -", True), ("- - - 0", False), ("- - 0 - -", True)],
)
def test_an_item_that_never_gets_to_its_messages_is_unreadable(
    faults: str, *, unreadable: bool
) -> None:
    assert suspicion(faults).is_unreadable is unreadable


@pytest.mark.parametrize("record", [b"", b"\xff", b"{}", b"9" * 10_000])
def test_a_record_of_somebody_else_is_no_error(record: bytes) -> None:
    assert not Suspicion.read(b"digest", record).is_poison(0)


def test_the_rejection_says_how_often_and_what_to_do() -> None:
    rejected = suspicion("- - 3 3").rejection()
    assert rejected.reason is RejectionReason.DELIVERED_TOO_OFTEN
    assert rejected.detail.startswith("delivered 4 times without an outcome, the last 2 alone: ")
