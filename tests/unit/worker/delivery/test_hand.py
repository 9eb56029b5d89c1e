"""worker.delivery.hand: room in messages, of each queue its own, and who is told about it."""

import threading
from collections.abc import Set as AbstractSet

import pytest

from tests.support.processes import wait_for
from worker.broker.keys import QUEUES
from worker.delivery import hand as module
from worker.delivery.hand import UNSTORED, Hand
from worker.delivery.scripts import Suspects
from worker.telemetry.flow import Flow

LIVE, BACKFILL = BOTH = QUEUES


class Told(Hand):
    """A hand that counts its calls, and whose engine is never fast."""

    def __init__(self, slots: int = 4) -> None:
        super().__init__(slots)
        self.calls = 0
        self.on_room = self.count

    def count(self) -> None:
        self.calls += 1

    def put(
        self, tag: str, queue: str = LIVE, weight: int = 1, *, is_suspect: bool = False
    ) -> None:
        self.add(tag, queue, weight, is_suspect=is_suspect)


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(module, "PACE_SECONDS", 3600.0)
    return Told()


def test_each_queue_has_room_for_twice_the_slots(hand: Told) -> None:
    assert hand.rooms(BOTH) == [8, 8]
    hand.put("a")
    hand.put("batch", BACKFILL, 256)
    assert hand.rooms(BOTH) == [7, 0]
    assert hand.has_room(BOTH)
    assert not hand.has_room([BACKFILL])
    assert not hand.has_room([])


def test_the_next_batch_comes_when_the_one_in_hand_runs_low(hand: Told) -> None:
    hand.put("batch", BACKFILL, 256)
    hand.weigh("batch", 100)
    for left in range(99, 0, -1):
        hand.evaluated("batch", 1)
        assert hand.rooms([BACKFILL]) == [max(0, 8 - left)]


def test_outcomes_that_redis_does_not_take_end_the_taking(hand: Told) -> None:
    taken = 0
    while hand.has_room([LIVE]):
        hand.put(f"{taken}")
        hand.evaluated(f"{taken}", 1)
        taken += 1
    assert taken == UNSTORED + 8
    hand.stored("0", 1)
    assert hand.rooms([LIVE]) == [1]


def test_an_engine_that_is_fast_gets_more_than_its_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACE_SECONDS", 0.01)
    fast = Hand(slots=4)
    fast.add("batch", BACKFILL, 10_000, is_suspect=False)

    def evaluate() -> bool:
        fast.evaluated("batch", 1)
        return fast.limit > 8

    while not evaluate():
        pass
    assert fast.limit < 10_000


def test_room_is_announced_once_and_only_to_who_looked_in_vain(hand: Told) -> None:
    for number in range(8):
        hand.put(f"{number}")
    hand.remove("0")
    assert hand.calls == 0, "nobody looked"
    hand.rooms(BOTH)
    hand.put("0")
    hand.rooms(BOTH)
    hand.remove("0")
    hand.remove("1")
    assert hand.calls == 1
    assert hand.rooms(BOTH) == [2, 8]


def test_room_for_less_than_a_tenth_of_a_seconds_work_is_worth_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PACE_SECONDS", 0.25)
    hand = Told()
    hand._paced_since, hand._pace = float("inf"), 50.0
    hand.put("batch", weight=50)
    assert hand.rooms(BOTH) == [0, 0]
    hand.evaluated("batch", 19)
    assert hand.calls == 0
    assert not hand.has_room(BOTH)
    hand.evaluated("batch", 1)
    assert hand.calls == 1
    assert hand.rooms(BOTH) == [20, 50]


def test_beside_live_messages_others_come_with_the_next_of_these(hand: Told) -> None:
    for number in range(8):
        hand.put(f"{number}")
    assert hand.rooms(BOTH) == [0, 0]
    hand.evaluated("0", 1)
    assert hand.calls == 1
    assert hand.rooms(BOTH) == [1, 8]
    hand.put("batch", BACKFILL, 256)
    assert hand.rooms(BOTH) == [1, 0], "but those of the backlog keep no live message waiting"


def test_a_queue_is_pressed_while_its_messages_wait_for_a_slot(hand: Told) -> None:
    hand.put("batch", weight=5)
    assert hand.is_pressed(LIVE)
    assert not hand.is_pressed(BACKFILL)
    hand.evaluated("batch", 1)
    assert not hand.is_pressed(LIVE)


def test_every_item_is_forgotten_once(hand: Told) -> None:
    hand.put("a", weight=3)
    hand.evaluated("a", 1)
    hand.remove("a")
    hand.remove("a")
    hand.evaluated("a", 1)
    hand.stored("a", 1)
    hand.weigh("a", 5)
    assert hand.rooms([LIVE]) == [8]
    assert hand.tags() == []


def test_nothing_is_taken_beside_a_suspect(hand: Told) -> None:
    assert hand.suspects == Suspects.LAST.value
    hand.put("s", is_suspect=True)
    assert hand.rooms(BOTH) == [0, 0]
    assert hand.suspects == Suspects.NEVER.value
    hand.remove("s")
    assert hand.calls == 1
    assert hand.rooms(BOTH) == [8, 8]


def test_a_suspect_that_waits_empties_the_hand_and_comes_first(hand: Told) -> None:
    hand.put("a")
    hand.suspects_wait = True
    assert hand.rooms(BOTH) == [0, 0]
    hand.remove("a")
    assert hand.calls == 1
    assert hand.suspects == Suspects.FIRST.value
    hand.put("s", is_suspect=True)
    hand.remove("s")
    assert hand.suspects == Suspects.LAST.value, "others have their turn first"
    hand.put("a")
    assert hand.rooms(BOTH) == [7, 8]


def test_a_closed_hand_takes_nothing_more(hand: Told) -> None:
    hand.put("a")
    hand.close()
    assert hand.rooms(BOTH) == [0, 0]
    hand.remove("a")
    assert hand.calls == 0
    assert hand.suspects == Suspects.NEVER.value


def test_requests_without_a_reply_are_lost_but_for_the_last(hand: Told) -> None:
    lost: list[list[str]] = []
    hand.on_lost = lambda: lost.append(hand.lost())
    hand.asked("a")
    hand.heard()
    hand.asked("b")
    assert lost == []
    hand.asked("c")
    assert lost == [["b"]]
    assert hand.lost() == []
    assert hand.lost(at_end=True) == ["c"]


def test_who_waits_for_the_hand_is_woken_by_removals(hand: Told) -> None:
    hand.put("a")
    hand.put("b")
    seen: list[set[str]] = []

    def is_empty(tags: AbstractSet[str]) -> bool:
        seen.append(set(tags))
        return not tags

    waiting = threading.Thread(target=hand.wait_for, args=[is_empty])
    waiting.start()
    wait_for(lambda: bool(seen), "waits")
    hand.remove("a")
    hand.remove("b")
    waiting.join(30)
    assert seen[0] == {"a", "b"}
    assert seen[-1] == set()


def flow(hand: Hand, queue: str = LIVE) -> Flow:
    found = hand.flows().get(queue, Flow(0, 0, 0, 0))
    assert found.taken == found.settled + found.returned + found.in_hand
    return found


def test_a_task_counts_as_one_message_until_it_is_read(hand: Told) -> None:
    hand.put("batch", weight=256)
    assert flow(hand) == Flow(1, 0, 0, 1)
    hand.weigh("batch", 9)
    assert flow(hand) == Flow(1, 0, 0, 1)
    hand.weigh("batch", 7, missing=True)  # two have an outcome from an earlier delivery
    assert flow(hand) == Flow(7, 0, 0, 7)


def test_messages_are_settled_one_by_one_and_the_others_go_back(hand: Told) -> None:
    hand.put("batch", BACKFILL, 256)
    hand.weigh("batch", 9, missing=True)
    hand.stored("batch", 4)
    assert flow(hand, BACKFILL) == Flow(9, 4, 0, 5)
    hand.dropped("batch", 2)
    assert flow(hand, BACKFILL) == Flow(9, 4, 0, 5)
    hand.remove("batch", returned=True)
    assert flow(hand, BACKFILL) == Flow(9, 4, 5, 0)
    hand.stored("batch", 3)  # too late
    assert flow(hand, BACKFILL) == Flow(9, 4, 5, 0)
    assert flow(hand) == Flow(0, 0, 0, 0)


@pytest.mark.parametrize("returned", [False, True])
def test_a_batch_that_only_has_to_be_acknowledged_counts_as_one_message(
    hand: Told, *, returned: bool
) -> None:
    hand.put("batch", weight=256)
    hand.weigh("batch", 0, missing=True)
    assert flow(hand) == Flow(1, 0, 0, 1)
    hand.remove("batch", returned=returned)
    assert flow(hand) == Flow(1, not returned, returned, 0)


def test_both_queues_have_a_flow_from_the_start(hand: Told) -> None:
    assert hand.flows() == dict.fromkeys(QUEUES, Flow(0, 0, 0, 0))
