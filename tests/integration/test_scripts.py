"""worker.delivery.scripts against a real Redis: where an item is after each step."""

import hashlib
from typing import Any

import pytest
import redis

from worker.broker.keys import (
    FAULTS,
    LIVE_QUEUE,
    UNACKED,
    UNACKED_INDEX,
    delivery_tag,
    suspects,
)
from worker.delivery.scripts import ACKNOWLEDGE, MARK, PUT_BACK, TAKE, Suspects
from worker.delivery.suspicion import Suspicion

NOTED = (UNACKED, UNACKED_INDEX, FAULTS)
APART = suspects(LIVE_QUEUE)

LONGEST = 1000
BEGINNING = 10


def take(store: redis.Redis, unique: str = "1", when: Suspects = Suspects.LAST) -> list[Any]:
    tag = delivery_tag(LIVE_QUEUE, unique)
    keys = (*NOTED, APART, LIVE_QUEUE)
    reply: list[Any] = TAKE(store, keys, 1, tag, tag, 7.0, when, LONGEST, BEGINNING)
    return reply


def suspicion(reply: list[Any]) -> Suspicion:
    _item, _tag, _waiting, faults, _length, digest = reply
    return Suspicion.read(digest, faults)


def put_back(store: redis.Redis, unique: str = "1", *, fault: bool) -> None:
    tag = delivery_tag(LIVE_QUEUE, unique)
    PUT_BACK(store, (*NOTED, LIVE_QUEUE, APART), tag, int(fault))


def fail(store: redis.Redis, times: int) -> list[Any]:
    """Take the one item and put it back after a fault, several times; then take it."""
    for _ in range(times):
        take(store)
        put_back(store, fault=True)
    return take(store)


def test_an_item_is_noted_before_it_leaves_its_list(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, "a", "b")
    assert take(store) == [b"a", b"sqe.evaluate/1", 0, None, None, None]
    assert store.hgetall(UNACKED) == {b"sqe.evaluate/1": b"a"}
    assert store.zrange(UNACKED_INDEX, 0, -1, withscores=True) == [(b"sqe.evaluate/1", 7.0)]
    assert store.lrange(LIVE_QUEUE, 0, -1) == [b"b"]


def test_after_a_drain_an_item_is_taken_next_and_after_a_fault_last(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, "a", "b")
    take(store)
    put_back(store, fault=False)
    assert store.lrange(LIVE_QUEUE, 0, -1) == [b"b", b"a"]
    assert not store.exists(FAULTS)
    take(store)
    put_back(store, fault=True)
    assert store.lrange(LIVE_QUEUE, 0, -1) == [b"a", b"b"]
    assert store.ttl(FAULTS) > 0
    assert not store.exists(UNACKED, UNACKED_INDEX)


def test_an_item_becomes_a_suspect_with_its_second_fault(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, "a")
    assert fail(store, 1)[3:] == [None, None, None]
    put_back(store, fault=True)
    assert store.lrange(APART, 0, -1) == [b"a"]
    assert suspicion(take(store)).positions == {"-": 2}


@pytest.mark.parametrize(
    ("when", "taken"),
    [(Suspects.NEVER, [b"other"]), (Suspects.LAST, [b"other", b"a"]), (Suspects.FIRST, [b"a"])],
)
def test_a_suspect_is_taken_when_it_is_asked_for(
    store: redis.Redis, when: Suspects, taken: list[bytes]
) -> None:
    store.lpush(LIVE_QUEUE, "a")
    fail(store, 2)
    put_back(store, fault=False)
    store.lpush(LIVE_QUEUE, "other")
    for number, item in enumerate(taken):
        assert take(store, str(number), when)[0] == item
    nothing = take(store, "last", Suspects.NEVER)
    assert nothing[:3] == [None if when != Suspects.FIRST else b"other", *nothing[1:3]]
    assert nothing[2] == (when is Suspects.NEVER), "whether suspects wait"


def test_a_suspects_drain_counts_nothing_and_keeps_it_apart(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, "a")
    faults = suspicion(fail(store, 2))
    for _ in range(9):
        put_back(store, fault=False)
        assert store.lrange(APART, 0, -1) == [b"a"]
        assert suspicion(take(store)) == faults


def test_a_fault_is_blamed_on_the_message_that_was_evaluated_alone(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, "batch")
    for position in (3, 3, 7):
        taken = suspicion(fail(store, 0 if store.exists(FAULTS) else 2))
        MARK(store, (FAULTS,), taken.digest, 0)
        MARK(store, (FAULTS,), taken.digest, position)
        put_back(store, fault=True)
    last = suspicion(take(store))
    assert last.positions == {"-": 2, "3": 2, "7": 1}
    assert [each for each in range(9) if last.is_poison(each)] == [3]


def test_an_acknowledged_item_leaves_nothing_behind(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, "a")
    digest = suspicion(fail(store, 2)).digest
    MARK(store, (FAULTS,), digest, 0)
    ACKNOWLEDGE(store, NOTED, delivery_tag(LIVE_QUEUE, "1"))
    MARK(store, (FAULTS,), digest, 1)  # by a worker that still evaluates it
    put_back(store, fault=True)
    assert store.keys("sqe*") == []


def test_only_the_beginning_of_a_long_item_leaves_redis(store: redis.Redis) -> None:
    item = b"0123456789" * (LONGEST // 10)
    longer = item + b"!"
    store.lpush(LIVE_QUEUE, item, longer)
    assert take(store, "1")[0] == item
    digest = hashlib.sha1(longer, usedforsecurity=False).hexdigest().encode()
    taken = take(store, "2")
    assert taken == [item[:BEGINNING], b"sqe.evaluate/2", 0, None, len(longer), digest]
    put_back(store, "2", fault=True)
    assert store.lrange(LIVE_QUEUE, 0, -1) == [longer], "the whole item is kept until it is stored"


def test_a_suspect_can_be_too_long_as_well(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, "x" * (LONGEST + 1))
    item, *_, faults, length, _digest = fail(store, 2)
    assert (item, faults, length) == (b"x" * BEGINNING, b" - -", LONGEST + 1)
