"""worker.delivery.outcomes and worker.broker.backlog against a real Redis."""

import dataclasses
import threading
from pathlib import Path

import pytest
import redis
from celery.result import AsyncResult

from schemas import Category, MessageRejected, RejectionReason
from tests.support.stubs import message, verdict
from worker.broker import embedded
from worker.broker.app import create_app
from worker.broker.backlog import read_backlog
from worker.broker.keys import (
    DEAD_LETTERS,
    FAILURES,
    LIVE_QUEUE,
    UNACKED_INDEX,
    attempt,
    delivery_tag,
    result,
)
from worker.broker.streams import read_dead_letters, read_failures
from worker.delivery.envelope import Envelope, Refusal
from worker.delivery.outcomes import Answer, Batch, Delivery, DeliveryAborted
from worker.settings import Settings

BATCH = Batch.of(Envelope("t", "batch-1", LIVE_QUEUE, b"[]", None, keep_result=True))


@pytest.fixture
def errors() -> list[None]:
    return []


@pytest.fixture
def delivery(store: redis.Redis, errors: list[None]) -> Delivery:
    settings = Settings(failures_maxlen=100, dead_letters_maxlen=100)
    return Delivery(store, settings, worker="w:1", on_error=lambda: errors.append(None))


def failure(delivery: Delivery, message_id: str = "m1") -> Answer:
    sent = message("fail", message_id=message_id)
    return delivery.verdict(verdict(sent), sent, "task-1")


def refusal(delivery: Delivery, identity: str = "task-1/0") -> Answer:
    rejected = MessageRejected(RejectionReason.NOT_JSON, "why")
    return delivery.dead_letter(
        Refusal(b"\xff body", "sqe.evaluate", identity, "m1", ("m1",), rejected)
    )


def test_only_the_first_delivery_of_an_outcome_counts(
    delivery: Delivery, store: redis.Redis
) -> None:
    answers = [failure(delivery), refusal(delivery)]
    assert delivery.deliver(answers) == [True, True]
    assert delivery.deliver(answers) == [False, False]
    assert (store.xlen(FAILURES), store.xlen(DEAD_LETTERS)) == (1, 1)


def test_the_same_message_twice_in_one_batch_counts_once(delivery: Delivery) -> None:
    assert delivery.deliver([failure(delivery)] * 2) == [True, False]


def test_an_attempt_whose_reply_was_lost_still_counts(
    delivery: Delivery, store: redis.Redis
) -> None:
    answers = [failure(delivery)]
    assert delivery._attempt(answers, "token") == [True]
    assert delivery._attempt(answers, "token") == [True]
    assert store.xlen(FAILURES) == 1


def test_a_reply_that_is_lost_leaves_an_outcome_that_was_counted_before(
    delivery: Delivery, store: redis.Redis
) -> None:
    delivery.deliver([failure(delivery)])
    answers = [failure(delivery), failure(delivery, "m2")]
    assert delivery._attempt(answers, "token") == [False, True]
    assert delivery._attempt(answers, "token") == [False, True]
    assert delivery._attempt(answers, "another") == [False, False]
    assert store.xlen(FAILURES) == 2


def test_one_attempt_of_a_thread_is_noted_however_many_there_were(
    delivery: Delivery, store: redis.Redis
) -> None:
    for number in range(5):
        assert delivery.deliver([failure(delivery, f"m{number}")]) == [True]
    assert len(store.keys(attempt("*"))) == 1


@pytest.mark.parametrize(
    ("other", "first"),
    [
        ({"completion": "other"}, True),
        ({"prompt": "fail again"}, True),
        ({"agent_id": "other"}, True),
        ({"puzzle_id": 3}, True),
        ({"category": Category.CI_CD}, True),
        ({"created_at": None}, False),
        ({"tags": {"run": "2"}}, False),
    ],
)
def test_an_id_that_comes_again_counts_if_the_content_is_another(
    delivery: Delivery, other: dict[str, object], *, first: bool
) -> None:
    sent = message(message_id="m1")
    again = sent.model_copy(update=other)
    answers = [delivery.verdict(verdict(each), each, None) for each in (sent, again)]
    assert delivery.deliver(answers) == [True, first]


def test_another_checkpoint_counts_for_itself(delivery: Delivery) -> None:
    sent = message()
    other = verdict(sent).model_copy(update={"checkpoint_digest": "b" * 64})
    first = delivery.verdict(verdict(sent), sent, None)
    second = delivery.verdict(other, sent, None)
    assert delivery.deliver([first, second]) == [True, True]


def test_each_stream_keeps_what_its_readers_need(delivery: Delivery, store: redis.Redis) -> None:
    delivery.deliver([failure(delivery), refusal(delivery)])
    (kept,) = read_failures(store)
    assert (kept.verdict.message_id, kept.message.message_id) == ("m1", "m1")
    (letter,) = read_dead_letters(store)
    assert (letter.reason, letter.detail, letter.message_id) == ("not_json", "why", "m1")
    assert (letter.body, letter.queue, letter.worker) == (b"\xff body", "sqe.evaluate", "w:1")


def test_a_result_is_one_of_celerys(delivery: Delivery, redis_url: str) -> None:
    delivery.deliver([failure(delivery)])
    delivery.finish(BATCH, ['{"message_id":"m1"}'])
    app = create_app(redis_url)
    for task_id in ("m1", "task-1"):
        assert AsyncResult(task_id, app=app).get(timeout=1)["message_id"] == "m1"
    assert len(AsyncResult("batch-1", app=app).get(timeout=1)) == 1
    app.close()


@pytest.mark.parametrize(
    ("wanted", "kept"), [(None, 3600), (0.25, 0.25), (1e-9, 0.001), (60, 60), (1e300, 7200)]
)
def test_outcomes_are_kept_for_as_long_as_their_sender_wants(
    store: redis.Redis, wanted: float | None, kept: float
) -> None:
    settings = Settings(result_expires_max=7200)
    delivery = Delivery(store, settings, worker="w:1", on_error=lambda: None)
    lives: dict[str, float] = {}
    with store.monitor() as monitor:  # type: ignore[no-untyped-call]
        deliver_all(delivery, wanted)
        for command in monitor.listen():
            match command["command"].split():
                case ["SET", key, *_, "PX", milliseconds] if key.startswith("celery"):
                    lives[key] = int(milliseconds) / 1000
            if len(lives) == 3:
                break
    assert lives == dict.fromkeys(map(result, ("m1", "m2", "batch-1")), kept)


def test_an_outcome_that_its_sender_does_not_want_is_counted_but_neither_kept_nor_announced(
    delivery: Delivery, store: redis.Redis
) -> None:
    with store.pubsub() as pubsub:  # type: ignore[no-untyped-call]
        pubsub.psubscribe("*")
        assert pubsub.get_message(timeout=5)
        assert deliver_all(delivery, 0) == [True, True]
        assert not store.keys("celery*")
        assert pubsub.get_message(timeout=0) is None
    assert (store.xlen(FAILURES), store.xlen(DEAD_LETTERS)) == (1, 1)


def deliver_all(delivery: Delivery, wanted: float | None) -> list[bool]:
    """Store a verdict, a rejection and a batch's list, to be kept for `wanted` seconds."""
    sent = message("fail", message_id="m1")
    rejected = MessageRejected(RejectionReason.NOT_JSON, "why")
    refused = Refusal(
        b"body", LIVE_QUEUE, "task-1/1", "m2", ("m2",), rejected, result_seconds=wanted
    )
    envelope = Envelope("t", "batch-1", LIVE_QUEUE, b"[]", None, True, result_seconds=wanted)
    batch = Batch.of(envelope)
    answers = [
        delivery.verdict(verdict(sent), sent, None, wanted),
        delivery.dead_letter(refused),
    ]
    firsts = delivery.deliver(answers, batch=batch, positions=[0, 1])
    delivery.finish(batch, ["{}", "{}"])
    return firsts


@pytest.mark.parametrize(("keep_result", "kept"), [(True, "m2"), (False, "")])
def test_the_outcomes_of_a_batch_are_noted_until_it_is_finished(
    delivery: Delivery,
    store: redis.Redis,
    keep_result: bool,  # noqa: FBT001
    kept: str,
) -> None:
    envelope = Envelope("t", "batch-1", LIVE_QUEUE, b"[]", None, keep_result=keep_result)
    batch = Batch.of(envelope)
    assert delivery.begin(batch) == {}
    delivery.deliver(
        [failure(delivery, "m2"), failure(delivery, "m7")], batch=batch, positions=[2, 7]
    )
    noted = delivery.begin(Batch.of(envelope))
    assert noted.keys() == {2, 7}
    assert kept in noted[2]
    assert 0 < store.ttl(batch.key) <= Settings().result_expires
    assert delivery.begin(Batch.of(dataclasses.replace(envelope, body=b"[1]"))) == {}
    assert delivery.begin(Batch.of(dataclasses.replace(envelope, task_id="batch-2"))) == {}
    delivery.finish(batch, list(noted.values()))
    assert delivery.begin(batch) == {}
    assert store.exists(result("batch-1")) == keep_result


def test_streams_stay_near_their_length(delivery: Delivery, store: redis.Redis) -> None:
    for number in range(40):
        delivery.deliver([refusal(delivery, f"{number}/{place}") for place in range(20)])
    # Redis trims whole nodes of 100 entries.
    assert 100 <= store.xlen(DEAD_LETTERS) <= 200


def test_an_outage_is_waited_out(tmp_path: Path) -> None:
    errors: list[None] = []
    with embedded.start(tmp_path) as server:
        url = server.url
    client = redis.Redis.from_url(url)
    delivery = Delivery(client, Settings(), worker="w", on_error=lambda: errors.append(None))
    firsts: list[bool] = []
    thread = threading.Thread(target=lambda: firsts.extend(delivery.deliver([refusal(delivery)])))
    thread.start()
    with embedded.start(tmp_path):
        thread.join(30)
        assert firsts == [True]
    assert errors
    client.close()


def test_after_giving_up_an_outage_ends_the_delivery() -> None:
    client = redis.Redis.from_url("redis://127.0.0.1:1/0")
    delivery = Delivery(client, Settings(), worker="w", on_error=lambda: None)
    delivery.give_up()
    with pytest.raises(DeliveryAborted):
        delivery.deliver([refusal(delivery)])


def test_the_backlog_is_counted_by_queue_and_state(store: redis.Redis) -> None:
    store.lpush("sqe.evaluate", "a", "b")
    store.lpush("sqe.evaluate\x06\x169", "urgent for a Celery producer")
    store.lpush("sqe.backfill", "c")
    store.zadd(UNACKED_INDEX, {delivery_tag("sqe.backfill", str(n)): n for n in range(5)})
    assert read_backlog(store) == {
        ("sqe.evaluate", "ready"): 3,
        ("sqe.evaluate", "unacked"): 0,
        ("sqe.backfill", "ready"): 1,
        ("sqe.backfill", "unacked"): 5,
    }


def test_without_redis_there_is_no_backlog() -> None:
    with redis.Redis.from_url("redis://127.0.0.1:1/0") as nobody:
        assert read_backlog(nobody) is None
