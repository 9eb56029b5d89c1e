"""Damaged items through a real worker: the short form of `make fuzz`."""

from tests.fuzz.delivery import DELIVERY


def test_every_damaged_item_has_its_outcomes_once() -> None:
    tally = DELIVERY.run(0, range(600))
    assert not tally.findings
    assert tally.accepted
    assert len(tally.refused) > 5
