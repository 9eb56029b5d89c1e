"""The rules of storing, the threads that store, and the backlog, against a real Redis."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.result import AsyncResult
from redis.client import Pipeline

from schemas import Category, MessageRejected, RejectionReason
from tests.support.processes import wait_for
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
from worker.delivery.agents import Counted
from worker.delivery.envelope import Envelope, Refusal
from worker.delivery.outcomes import Answer, Batch, Delivery, Entry
from worker.delivery.storing import THREADS, Step, Storable, Storing
from worker.settings import Settings

BATCH = Batch.of(Envelope("t", "batch-1", LIVE_QUEUE, b"[]", None, keep_result=True))


def _raise(error: Exception) -> None:
    raise error


class Site:
    """Delivery rules and the threads that send."""

    def __init__(self, client: redis.Redis, **settings: int) -> None:
        self.rules = Delivery(Settings(**settings), worker="w:1")
        self.errors: list[None] = []
        self.aborted: list[None] = []
        self.storing = Storing(
            client, self.rules.store, replicas=0, on_error=lambda: self.errors.append(None)
        )
        self.storing.start()

    def send(self, command: Callable[[Pipeline], object]) -> list[Any]:
        """Send a step, and return its replies."""
        found: list[Any] = []
        done = threading.Event()

        def accepted(replies: list[Any]) -> None:
            found.extend(replies)
            done.set()

        self.storing.put(lambda: Step(command, accepted, done.set, _raise))
        assert done.wait(30)
        return found

    def deliver(self, *answers: Answer, batch: Batch | None = None) -> list[bool]:
        """Store answers, a batch's from position 0; returns which of them count."""
        firsts: dict[int, bool] = {}
        done = threading.Semaphore(0)

        def build(place: int, answer: Answer) -> Storable:
            def accepted(counted: Counted) -> None:
                firsts[place] = bool(counted)
                done.release()

            def aborted() -> None:
                self.aborted.append(None)
                done.release()

            outcome = answer.outcome.model_dump_json()
            entry = Entry(answer, outcome, batch=batch, position=place)
            return Storable(entry, accepted, aborted, _raise)

        self.storing.put(*(partial(build, *each) for each in enumerate(answers)))
        for _ in answers:
            assert done.acquire(timeout=30)
        return [first for _, first in sorted(firsts.items())]

    def attempt(self, token: str, *answers: Answer) -> list[bool]:
        """Store answers once, as the attempt with this token."""
        entries = [Entry(each, each.outcome.model_dump_json()) for each in answers]
        (replies,) = self.send(lambda pipe: self.rules.store(pipe, entries, token, "name"))
        return [bool(reply) for reply in replies]

    def noted(self, batch: Batch) -> dict[int, str]:
        (reply,) = self.send(partial(self.rules.begin, batch=batch))
        return self.rules.earlier(reply)

    def finish(self, batch: Batch, outcomes: list[str]) -> None:
        self.send(partial(self.rules.finish, batch=batch, outcomes=outcomes, tag="tag"))


@pytest.fixture
def site(store: redis.Redis) -> Iterator[Site]:
    site = Site(store)
    yield site
    site.storing.give_up()
    site.storing.stop()


def failure(site: Site, message_id: str = "m1") -> Answer:
    sent = message("fail", message_id=message_id)
    return site.rules.verdict(verdict(sent), sent, "task-1")


def refusal(site: Site, identity: str = "task-1/0") -> Answer:
    rejected = MessageRejected(RejectionReason.NOT_JSON, "why")
    return site.rules.dead_letter(
        Refusal(b"\xff body", "sqe.evaluate", identity, "m1", ("m1",), rejected)
    )


def test_only_the_first_delivery_of_an_outcome_counts(site: Site, store: redis.Redis) -> None:
    answers = [failure(site), refusal(site)]
    assert site.deliver(*answers) == [True, True]
    assert site.deliver(*answers) == [False, False]
    assert (store.xlen(FAILURES), store.xlen(DEAD_LETTERS)) == (1, 1)


def test_the_same_message_twice_in_one_batch_counts_once(site: Site) -> None:
    assert site.deliver(failure(site), failure(site)) == [True, False]


def test_an_attempt_whose_reply_was_lost_still_counts(site: Site, store: redis.Redis) -> None:
    assert site.attempt("token", failure(site)) == [True]
    assert site.attempt("token", failure(site)) == [True]
    assert store.xlen(FAILURES) == 1


def test_a_reply_that_is_lost_leaves_an_outcome_that_was_counted_before(
    site: Site, store: redis.Redis
) -> None:
    site.deliver(failure(site))
    answers = [failure(site), failure(site, "m2")]
    assert site.attempt("token", *answers) == [False, True]
    assert site.attempt("token", *answers) == [False, True]
    assert site.attempt("another", *answers) == [False, False]
    assert store.xlen(FAILURES) == 2


def test_few_attempts_are_noted_however_many_there_were(site: Site, store: redis.Redis) -> None:
    for number in range(9):
        assert site.deliver(failure(site, f"m{number}")) == [True]
    assert len(store.keys(attempt("*"))) <= THREADS


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
    site: Site, other: dict[str, object], *, first: bool
) -> None:
    sent = message(message_id="m1")
    again = sent.model_copy(update=other)
    answers = [site.rules.verdict(verdict(each), each, None) for each in (sent, again)]
    assert site.deliver(*answers) == [True, first]


def test_another_checkpoint_counts_for_itself(site: Site) -> None:
    sent = message()
    other = verdict(sent).model_copy(update={"checkpoint_digest": "b" * 64})
    first = site.rules.verdict(verdict(sent), sent, None)
    second = site.rules.verdict(other, sent, None)
    assert site.deliver(first, second) == [True, True]


def test_each_stream_keeps_what_its_readers_need(site: Site, store: redis.Redis) -> None:
    site.deliver(failure(site), refusal(site))
    (kept,) = read_failures(store)
    assert (kept.verdict.message_id, kept.message.message_id) == ("m1", "m1")
    (letter,) = read_dead_letters(store)
    assert (letter.reason, letter.detail, letter.message_id) == ("not_json", "why", "m1")
    assert (letter.body, letter.queue, letter.worker) == (b"\xff body", "sqe.evaluate", "w:1")


def test_a_result_is_one_of_celerys(site: Site, redis_url: str) -> None:
    site.deliver(failure(site))
    site.finish(BATCH, ['{"message_id":"m1"}'])
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
    site = Site(store, result_expires_max=7200)
    lives: dict[str, float] = {}
    with store.monitor() as monitor:  # type: ignore[no-untyped-call]
        deliver_all(site, wanted)
        for command in monitor.listen():
            match command["command"].split():
                case ["SET", key, *_, "PX", milliseconds] if key.startswith("celery"):
                    lives[key] = int(milliseconds) / 1000
            if len(lives) == 3:
                break
    site.storing.stop()
    assert lives == dict.fromkeys(map(result, ("m1", "m2", "batch-1")), kept)


def test_an_outcome_that_its_sender_does_not_want_is_counted_but_neither_kept_nor_announced(
    site: Site, store: redis.Redis
) -> None:
    with store.pubsub() as pubsub:  # type: ignore[no-untyped-call]
        pubsub.psubscribe("*")
        assert pubsub.get_message(timeout=5)
        assert deliver_all(site, 0) == [True, True]
        assert not store.keys("celery*")
        assert pubsub.get_message(timeout=0) is None
    assert (store.xlen(FAILURES), store.xlen(DEAD_LETTERS)) == (1, 1)


def deliver_all(site: Site, wanted: float | None) -> list[bool]:
    """Store a verdict, a rejection and a batch's list, to be kept for `wanted` seconds."""
    sent = message("fail", message_id="m1")
    rejected = MessageRejected(RejectionReason.NOT_JSON, "why")
    refused = Refusal(
        b"body", LIVE_QUEUE, "task-1/1", "m2", ("m2",), rejected, result_seconds=wanted
    )
    envelope = Envelope("t", "batch-1", LIVE_QUEUE, b"[]", None, True, result_seconds=wanted)
    batch = Batch.of(envelope)
    answers = [
        site.rules.verdict(verdict(sent), sent, None, wanted),
        site.rules.dead_letter(refused),
    ]
    firsts = site.deliver(*answers, batch=batch)
    site.finish(batch, ["{}", "{}"])
    return firsts


@pytest.mark.parametrize(("keep_result", "kept"), [(True, "m0"), (False, "")])
def test_the_outcomes_of_a_batch_are_noted_until_it_is_finished(
    site: Site,
    store: redis.Redis,
    keep_result: bool,  # noqa: FBT001
    kept: str,
) -> None:
    envelope = Envelope("t", "batch-1", LIVE_QUEUE, b"[]", None, keep_result=keep_result)
    batch = Batch.of(envelope)
    assert site.noted(batch) == {}
    site.deliver(failure(site, "m0"), failure(site, "m1"), batch=batch)
    noted = site.noted(Batch.of(envelope))
    assert noted.keys() == {0, 1}
    assert kept in noted[0]
    assert 0 < store.ttl(batch.key) <= Settings().result_expires
    assert site.noted(Batch.of(dataclasses.replace(envelope, body=b"[1]"))) == {}
    assert site.noted(Batch.of(dataclasses.replace(envelope, task_id="batch-2"))) == {}
    site.finish(batch, list(noted.values()))
    assert site.noted(batch) == {}
    assert store.exists(result("batch-1")) == keep_result


def test_an_outage_is_waited_out(tmp_path: Path) -> None:
    with embedded.start(tmp_path) as server:
        url = server.url
    with redis.Redis.from_url(url) as client:
        site = Site(client)
        firsts: list[bool] = []
        thread = threading.Thread(target=lambda: firsts.extend(site.deliver(refusal(site))))
        thread.start()
        wait_for(lambda: bool(site.errors), "an attempt in vain")
        with embedded.start(tmp_path):
            thread.join(30)
            assert firsts == [True]
        site.storing.stop()


def test_after_giving_up_an_outage_aborts_what_is_to_be_stored() -> None:
    with redis.Redis.from_url("redis://127.0.0.1:1/0") as client:
        site = Site(client)
        site.storing.give_up()
        assert site.deliver(refusal(site)) == []
        assert site.aborted == [None]
        site.storing.stop()


def test_an_outcome_that_redis_refuses_holds_up_no_other(site: Site, store: redis.Redis) -> None:
    store.set(FAILURES, "no stream")
    refused = threading.Thread(target=site.deliver, args=[failure(site, "m1")])
    refused.start()
    wait_for(lambda: bool(site.errors), "refused")
    assert "WRONGTYPE" in str(site.storing.trouble.reason())
    assert site.deliver(refusal(site)) == [True]
    store.delete(FAILURES)
    refused.join(30)
    assert store.xlen(FAILURES) == 1
    assert site.storing.trouble.reason() is None


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
