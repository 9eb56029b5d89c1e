"""worker.delivery.scripts against a real Redis: where an item is after each step."""

import contextlib
import hashlib
import json
from typing import Any

import pytest
import redis

from tests.support.permissions import limited_url
from worker.broker.app import EVALUATE_BATCH
from worker.broker.keys import (
    AGENTS,
    BACKFILL_QUEUE,
    BATCHED,
    CANARIES,
    COUNTED,
    DEAD_LETTERS,
    EVIDENCE,
    FAULTS,
    LIVE_QUEUE,
    NOTED,
    QUEUES,
    UNACKED,
    UNACKED_INDEX,
    attempt,
    delivery_tag,
    queue_lists,
    suspects,
)
from worker.delivery.scripts import (
    FINISH,
    MARK,
    PUT_BACK,
    RECLAIM,
    RENEW,
    RESTORE,
    STORE,
    TAKE,
    Suspects,
    outcome_arguments,
)
from worker.delivery.suspicion import Suspicion
from worker.delivery.upkeep import WITH_QUEUES

APART = suspects(LIVE_QUEUE)

LONGEST = 1000
BEGINNING = 10

NOTHING = [None] * 5


def take_all(
    store: redis.Redis,
    *rooms: int,
    when: Suspects = Suspects.NEVER,
    most: int = 99,
    enough: int = 9999,
) -> list[Any]:
    """Take items of the live queue and of the backfill; returns them and whether suspects wait."""
    queues = QUEUES[: len(rooms)]
    names = [*map(suspects, queues), *(name for queue in queues for name in queue_lists(queue))]
    limits = (LONGEST, BEGINNING, most, enough)
    arguments: Any = (len(rooms), when, *limits, EVALUATE_BATCH, "many", *rooms)
    reply: list[Any] = TAKE(store, (*NOTED, *names, BATCHED), *arguments)
    return reply


def take(store: redis.Redis, unique: str = "1", when: Suspects = Suspects.LAST) -> list[Any]:
    """Take one item; its tag ends as the other functions' tags do."""
    names = (suspects(LIVE_QUEUE), *queue_lists(LIVE_QUEUE))
    limits = (LONGEST, BEGINNING, 1, 9999)
    items, waiting = TAKE(
        store, (*NOTED, *names, BATCHED), 1, when, *limits, EVALUATE_BATCH, unique, 1
    )
    item, tag, *rest = items[0] if items else NOTHING
    return [item, tag, waiting, *rest]


def tag_of(unique: str = "1") -> str:
    """The tag of the item that `take` takes."""
    return delivery_tag(LIVE_QUEUE, f"{unique}-0")


def suspicion(reply: list[Any]) -> Suspicion:
    _item, _tag, _waiting, faults, _length, digest = reply
    return Suspicion.read(digest, faults)


def put_back(store: redis.Redis, unique: str = "1", *, fault: bool) -> None:
    PUT_BACK(store, WITH_QUEUES, tag_of(unique), int(fault))


def fail(store: redis.Redis, times: int) -> list[Any]:
    """Take the one item and put it back after a fault, several times; then take it."""
    for _ in range(times):
        take(store)
        put_back(store, fault=True)
    return take(store)


def test_an_item_is_noted_before_it_leaves_its_list(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, "a", "b")
    assert take(store) == [b"a", b"sqe.evaluate/1-0", 0]
    assert store.hgetall(UNACKED) == {b"sqe.evaluate/1-0": b"a"}
    server: Any = store.time()
    assert store.zscore(UNACKED_INDEX, "sqe.evaluate/1-0") == pytest.approx(server[0], abs=5)
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
    assert fail(store, 1)[3:] == []
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


def test_a_fault_before_any_message_is_evaluated_is_blamed_on_none(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, "batch")
    MARK(store, (FAULTS,), suspicion(fail(store, 2)).digest, 3)
    put_back(store, fault=True)
    assert suspicion(fail(store, 1)).positions == {"-": 3, "3": 1}


def store_letter(store: redis.Redis, unique: str, token: str) -> int:
    names = (*NOTED, COUNTED, attempt(token), AGENTS, CANARIES, EVIDENCE)
    letter = (DEAD_LETTERS, 99, 1, "", "*", "a", 1)
    entry = outcome_arguments("", tag=tag_of(unique), record=letter)
    (reply,) = STORE(store, names, 9, token, 9, "", 0, *entry)
    first: int = reply
    return first


def test_a_refused_item_is_acknowledged_together_with_its_dead_letter(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, "no task")
    take(store)
    assert store_letter(store, "1", "token") == 1
    assert not store.exists(UNACKED, UNACKED_INDEX)
    assert store_letter(store, "1", "token") == 1, "the first reply was lost"
    assert store.xlen(DEAD_LETTERS) == 1


def test_an_item_that_went_to_another_worker_is_a_dead_letter_once(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, "no task")
    take(store, "1")
    put_back(store, "1", fault=True)
    take(store, "2")
    assert store_letter(store, "1", "first") == 0
    assert store.xlen(DEAD_LETTERS) == 0
    assert store_letter(store, "2", "second") == 1
    assert store.xlen(DEAD_LETTERS) == 1


def test_an_acknowledged_item_leaves_nothing_behind(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, "a")
    digest = suspicion(fail(store, 2)).digest
    MARK(store, (FAULTS,), digest, 0)
    FINISH(store, (*NOTED, "sqe:partial:1"), tag_of())
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
    assert taken == [item[:BEGINNING], b"sqe.evaluate/2-0", 0, None, len(longer), digest]
    put_back(store, "2", fault=True)
    assert store.lrange(LIVE_QUEUE, 0, -1) == [longer], "the whole item is kept until it is stored"


def test_a_suspect_can_be_too_long_as_well(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, "x" * (LONGEST + 1))
    item, *_, faults, length, _digest = fail(store, 2)
    assert (item, faults, length) == (b"x" * BEGINNING, b" - -", LONGEST + 1)


def without(store: redis.Redis, redis_url: str, command: str) -> redis.Redis:
    """A client that Redis refuses one command to, also in scripts."""
    return redis.Redis.from_url(limited_url(store, redis_url, f"-{command}"))


@pytest.mark.parametrize("command", ["hset", "zadd", "ltrim"])
def test_a_request_that_fails_loses_nothing(
    store: redis.Redis, redis_url: str, command: str
) -> None:
    store.lpush(LIVE_QUEUE, "a")
    with without(store, redis_url, command) as limited, pytest.raises(redis.ResponseError):
        take(limited)
    assert store.lrange(LIVE_QUEUE, 0, -1) == [b"a"]


@pytest.mark.parametrize("fault", [False, True])
@pytest.mark.parametrize("command", ["lpush", "rpush", "hset", "hdel", "zrem"])
def test_giving_back_loses_nothing_if_it_fails(
    store: redis.Redis, redis_url: str, command: str, *, fault: bool
) -> None:
    store.lpush(LIVE_QUEUE, "a")
    take(store)
    with (
        without(store, redis_url, command) as limited,
        contextlib.suppress(redis.ResponseError),
    ):
        put_back(limited, fault=fault)
    assert b"a" in [*store.lrange(LIVE_QUEUE, 0, -1), store.hget(UNACKED, "sqe.evaluate/1-0")]


def test_what_a_dead_worker_left_is_given_back_with_a_fault(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, *(f"item {number}" for number in range(5)))
    for number in range(5):
        take(store, str(number))
    store.zadd(UNACKED_INDEX, {tag_of(str(number)): 1.0 for number in (1, 2, 3)})
    found, first = RESTORE(store, WITH_QUEUES, 60, 2)
    assert (found, first) == (2, [tag.encode() for tag in map(tag_of, "12")])
    assert store.lrange(LIVE_QUEUE, 0, -1) == [b"item 2", b"item 1"]
    store.hdel(UNACKED, tag_of("3"))  # somebody deleted it
    assert RESTORE(store, WITH_QUEUES, 60, 2) == [1, []]
    assert RESTORE(store, WITH_QUEUES, 60, 2) == [0, []]
    assert store.hlen(UNACKED) == 2
    assert set(store.hvals(FAULTS)) == {b" -"}


def test_a_renewal_brings_no_acknowledged_item_back(store: redis.Redis) -> None:
    store.zadd(UNACKED_INDEX, {"sqe.evaluate/1": 1.0})
    RENEW(store, (UNACKED_INDEX,), "sqe.evaluate/1", "sqe.evaluate/2")
    assert store.zrange(UNACKED_INDEX, 0, -1) == [b"sqe.evaluate/1"]
    server: Any = store.time()
    assert store.zscore(UNACKED_INDEX, "sqe.evaluate/1") == pytest.approx(server[0], abs=5)


BATCH = f"a batch: {EVALUATE_BATCH}"


def items_of(reply: list[Any]) -> list[bytes]:
    return [item for item, *_ in reply[0]]


def test_a_request_takes_what_there_is_room_for_and_live_items_first(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, "a", "b", "c")
    store.lpush(BACKFILL_QUEUE, "d", "e", "f")
    assert items_of(take_all(store, 2, 2)) == [b"a", b"b", b"d", b"e"]
    assert store.hlen(UNACKED) == store.zcard(UNACKED_INDEX) == 4
    assert items_of(take_all(store, 0, 9)) == [b"f"]
    assert store.lrange(LIVE_QUEUE, 0, -1) == [b"c"]


def test_a_batch_ends_its_queues_share_of_a_request(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, "a", BATCH, "b")
    store.lpush(BACKFILL_QUEUE, BATCH, BATCH)
    assert items_of(take_all(store, 9, 9)) == [b"a", BATCH.encode(), BATCH.encode()]
    assert store.llen(LIVE_QUEUE) == store.llen(BACKFILL_QUEUE) == 1


def test_a_request_is_bounded_in_items_and_in_bytes(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, *(f"item {number}" for number in range(10)))
    assert len(items_of(take_all(store, 9, most=3))) == 3
    assert len(items_of(take_all(store, 9, enough=7))) == 2, "the item that exceeds it is taken"


def test_a_suspect_comes_alone_in_a_request_for_many(store: redis.Redis) -> None:
    store.lpush(suspects(BACKFILL_QUEUE), "s", "t")
    store.lpush(LIVE_QUEUE, "a")
    assert items_of(take_all(store, 9, 9, when=Suspects.FIRST)) == [b"s"]
    assert items_of(take_all(store, 9, 9, when=Suspects.LAST)) == [b"a"]
    assert items_of(take_all(store, 9, 9, when=Suspects.LAST)) == [b"t"]


@pytest.mark.parametrize("fault", [False, True])
@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("place", range(4))
def test_an_item_goes_back_to_the_priority_it_came_from(
    store: redis.Redis,
    queue: str,
    place: int,
    fault: bool,  # noqa: FBT001
) -> None:
    store.lpush(queue_lists(queue)[place], "a")
    ((item, tag, *_),), _waiting = take_all(store, 1, 1)
    assert item == b"a"
    PUT_BACK(store, WITH_QUEUES, tag, int(fault))
    assert store.lrange(queue_lists(queue)[place], 0, -1) == [b"a"]


def test_what_a_request_took_whose_reply_was_lost_goes_back_without_a_fault(
    store: redis.Redis,
) -> None:
    store.lpush(LIVE_QUEUE, "a", "b")
    store.lpush(BACKFILL_QUEUE, "c")
    take(store, "other")
    take_all(store, 9, 9)
    RECLAIM(store, WITH_QUEUES, "many")
    assert store.lrange(LIVE_QUEUE, 0, -1) == [b"b"]
    assert store.lrange(BACKFILL_QUEUE, 0, -1) == [b"c"]
    assert store.hvals(UNACKED) == [b"a"]
    assert not store.exists(FAULTS)


def store_outcomes(store: redis.Redis, *streams: str, position: int | None = None) -> list[Any]:
    """Store outcomes, the last of which ends the item that `take` takes, or is a message of it."""
    names = [*NOTED, COUNTED, attempt("name"), AGENTS, CANARIES, EVIDENCE]
    arguments: list[Any] = [9, "token", 9, ',"task_id":', len("result-")]
    for number, stream in enumerate(streams):
        is_last = number == len(streams) - 1
        entry = (stream, 99, 1, "", "*", "a", 1)
        names += [f"result-{number}"]
        place = position if is_last else None
        names += [] if place is None else ["parts"]
        tag = tag_of() if is_last and position is None else ""
        arguments += outcome_arguments(
            str(number),
            tag=tag,
            position=place,
            outcome='"noted"',
            is_noted=True,
            milliseconds=9000,
            results=1,
            record=entry,
        )
    reply: list[Any] = STORE(store, names, *arguments)
    return reply


def test_an_outcome_acknowledges_its_item_or_is_noted_in_its_batch(store: redis.Redis) -> None:
    store.lpush(LIVE_QUEUE, "a", "b")
    take(store)
    assert store_outcomes(store, "stream", "stream", position=3) == [1, 1]
    assert store.hgetall("parts") == {b"3": b'"noted"'}
    assert store.exists(UNACKED)
    store.delete("parts")
    assert store_outcomes(store, "stream", "stream", "stream") == [1, 1, 1]
    assert not store.exists(UNACKED, "parts")
    assert store.get("result-2") == b'{"status":"SUCCESS","result":"noted","task_id":"2"}'


def test_any_number_of_outcomes_acknowledges_its_items(store: redis.Redis) -> None:
    tags = [tag_of(str(number)) for number in range(2_001)]
    store.hset(UNACKED, mapping=dict.fromkeys(tags, "item"))
    store.zadd(UNACKED_INDEX, dict.fromkeys(tags, 1.0))
    names = [*NOTED, COUNTED, attempt("name"), AGENTS, CANARIES, EVIDENCE]
    arguments: list[Any] = [9, "token", 9, "", 0]
    for number, tag in enumerate(tags):
        arguments += outcome_arguments(str(number), tag=tag)
    assert STORE(store, names, *arguments) == [1] * len(tags)
    assert not store.exists(UNACKED, UNACKED_INDEX)


@pytest.mark.parametrize("task_id", ['"', "a/b", "back\\slash", "\x1f", "\x7f", "é ☃ 𝄞", ""])
@pytest.mark.parametrize("failure", ["", '{"exc_type":"MessageRejected"}'])
def test_a_result_names_its_task_whatever_the_name_is(
    store: redis.Redis, task_id: str, failure: str
) -> None:
    names = (*NOTED, COUNTED, attempt("name"), AGENTS, CANARIES, EVIDENCE, f"result-{task_id}")
    outcome = outcome_arguments(
        "1", outcome='{"é":1}', failure=failure, milliseconds=9000, results=1
    )
    end = ',"task_id":'
    assert STORE(store, names, 9, "token", 9, end, len("result-"), *outcome) == [1]
    assert json.loads(store.get(names[-1]) or "") == {
        "status": "FAILURE" if failure else "SUCCESS",
        "result": json.loads(failure or '{"é":1}'),
        "task_id": task_id,
    }


@pytest.mark.parametrize("position", [None, 3])
def test_an_outcome_that_is_not_stored_neither_ends_its_item_nor_stops_others(
    store: redis.Redis, position: int | None
) -> None:
    store.lpush(LIVE_QUEUE, "a")
    take(store)
    store.set("wrong", "no stream")
    first, refused, last = store_outcomes(store, "stream", "wrong", "wrong", position=position)
    assert first == 1
    assert b"WRONGTYPE" in refused
    assert b"WRONGTYPE" in last
    assert store.hlen(UNACKED) == 1
    assert not store.exists("parts")
    store.delete("wrong")
    assert store_outcomes(store, "stream", "wrong", "wrong", position=position) == [1, 1, 1]
    assert store.hlen(UNACKED) == (1 if position else 0)
    assert store.xlen("stream") == 1
