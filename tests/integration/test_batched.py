"""The number of messages that wait, of batches too: exact after each step, in Redis itself."""

from typing import Any

import pytest
import redis

from tests.support.stubs import message
from worker.broker.app import EVALUATE_BATCH
from worker.broker.keys import (
    BACKFILL_QUEUE,
    BATCHED,
    LIVE_QUEUE,
    NO_NAMESPACE,
    NOTED,
    QUEUES,
    UNACKED,
    Namespace,
    messages_of,
    queue_lists,
    suspects,
)
from worker.client import Client
from worker.delivery.scripts import PUT_BACK, TAKE, Suspects
from worker.delivery.upkeep import WITH_QUEUES


@pytest.fixture(params=["", "staging"])
def namespace(request: pytest.FixtureRequest) -> Namespace:
    return Namespace(request.param)


def take(store: redis.Redis, namespace: Namespace = NO_NAMESPACE, longest: int = 10**6) -> str:
    """Take one item; returns its tag."""
    names = [*map(suspects, QUEUES), *(name for each in QUEUES for name in queue_lists(each))]
    keys = namespace.all_keys((*NOTED, *names, BATCHED))
    limits = (longest, 10, 1, 10**6, EVALUATE_BATCH, "unique", 1, 1)
    items, _ = TAKE(store, keys, len(QUEUES), Suspects.LAST, *limits)
    tag: bytes = items[0][1]
    return tag.decode()


def more(store: redis.Redis, namespace: Namespace = NO_NAMESPACE) -> dict[str, int]:
    """Messages that wait beyond one of each item, by queue."""
    found: dict[Any, Any] = store.hgetall(namespace.key(BATCHED))
    return {namespace.name_of(name.decode()): int(count) for name, count in found.items()}


def test_every_step_of_a_batch_is_counted(
    redis_url: str, store: redis.Redis, namespace: Namespace
) -> None:
    keys = namespace.all_keys(WITH_QUEUES)
    with Client(redis_url, namespace.name) as client:
        client.submit_many([message() for _ in range(300)], queue=BACKFILL_QUEUE)
        client.submit_many([message()])
    assert more(store, namespace) == {BACKFILL_QUEUE: 298}
    assert messages_of(take(store, namespace)) == 1
    first, last = take(store, namespace), take(store, namespace)
    assert (messages_of(first), messages_of(last)) == (256, 44)
    assert more(store, namespace) == {BACKFILL_QUEUE: 0}
    for fault in (False, True, True):
        PUT_BACK(store, keys, last, int(fault))
        assert more(store, namespace) == {BACKFILL_QUEUE: 43}
        assert take(store, namespace) == last
    PUT_BACK(store, keys, first, 0)
    assert more(store, namespace) == {BACKFILL_QUEUE: 255}
    PUT_BACK(store, keys, first, 0)
    assert more(store, namespace) == {BACKFILL_QUEUE: 255}, "an item that is in its queue again"


def test_a_batch_that_is_too_long_to_be_taken_is_counted_too(
    client: Client, store: redis.Redis
) -> None:
    client.submit_many([message() for _ in range(20)])
    assert messages_of(take(store, longest=100)) == 20
    assert more(store) == {LIVE_QUEUE: 0}


@pytest.mark.parametrize("count", ["0", "1", "257", "-3", "99999999999999999999", "x", "2.5e9"])
def test_what_no_client_writes_counts_as_one_message(store: redis.Redis, count: str) -> None:
    store.lpush(LIVE_QUEUE, f'{{"task": "{EVALUATE_BATCH}", "sqe_messages": {count}}}')
    tag = take(store)
    assert messages_of(tag) in {1, 2}
    assert more(store) in ({}, {LIVE_QUEUE: -1}), "no more than a batch that nobody counted"


def test_a_text_in_a_message_is_no_header(client: Client, store: redis.Redis) -> None:
    client.submit(message(f'"{EVALUATE_BATCH}" "sqe_messages": 99'))
    assert messages_of(take(store)) == 1
    assert more(store) == {}


def test_after_a_queue_was_deleted_the_next_batch_sets_its_number_right(
    client: Client, store: redis.Redis
) -> None:
    client.submit_many([message() for _ in range(5)])
    store.delete(LIVE_QUEUE)
    client.submit_many([message() for _ in range(3)])
    assert more(store) == {LIVE_QUEUE: 6}
    take(store)
    assert more(store) == {}


def test_rubbish_in_the_place_of_the_numbers_keeps_no_batch(
    client: Client, store: redis.Redis
) -> None:
    client.submit_many([message(), message()])
    store.set(BATCHED, "rubbish")
    tag = take(store)
    assert store.hlen(UNACKED) == 1
    PUT_BACK(store, WITH_QUEUES, tag, 0)
    assert store.llen(LIVE_QUEUE) == 1
