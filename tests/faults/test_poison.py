"""Messages that end their workers: each becomes a dead letter, and its neighbours lose nothing."""

import functools
import hashlib
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from schemas import Rejection, RejectionReason, SQEMessage, Verdict
from tests.support.processes import STUB, Worker, wait_for
from tests.support.stubs import message
from worker.broker.app import EVALUATE_BATCH, create_app
from worker.broker.keys import BACKFILL_QUEUE, DEAD_LETTERS, FAULTS, LIVE_QUEUE, UNACKED, suspects
from worker.broker.streams import read_dead_letters
from worker.client import Client
from worker.delivery.suspicion import FAULTS_ALONE, FAULTS_BEFORE_SUSPICION

if TYPE_CHECKING:
    from tests.conftest import Site

SHORT = 1.0
"""The shortest visibility timeout, so that a dead worker's messages move on soon."""

Relay = Callable[..., int]
"""Starts worker after worker until all messages have outcomes; returns how many workers ended."""


@pytest.fixture
def relay(tmp_path: Path, redis_url: str, store: redis.Redis) -> Relay:
    def run(*options: str, most: int) -> int:
        ended = 0
        while ended <= most:
            limits = {"visibility_timeout": SHORT, "stall_seconds": SHORT}
            with Worker.start(STUB, tmp_path, redis_url, *options, **limits) as one:
                wait_for(lambda: one.process.poll() is not None or not waiting(store), "an end")
                if one.process.poll() is None:
                    return ended
                ended += 1
        raise AssertionError(f"more than {most} workers ended")

    return run


def waiting(store: redis.Redis) -> int:
    queues = (LIVE_QUEUE, BACKFILL_QUEUE)
    lists = (*queues, *map(suspects, queues))
    with store.pipeline() as pipe:  # at one moment, since items move from one to the other
        for key in lists:
            pipe.llen(key)
        pipe.hlen(UNACKED)
        return sum(pipe.execute())


def has_evaluated(worker: Worker, count: int) -> bool:
    return worker.total("evaluations_total") >= count


def letters(store: redis.Redis) -> Counter[str]:
    return Counter(letter.reason for letter in read_dead_letters(store))


def outcomes(client: Client, sent: list[SQEMessage]) -> dict[str, Verdict | Rejection]:
    return client.poll([each.message_id for each in sent])


def poisoned(sent: list[SQEMessage]) -> set[str]:
    return {each.message_id for each in sent if each.prompt == "die"}


def rejected(found: dict[str, Verdict | Rejection]) -> set[str]:
    return {key for key, outcome in found.items() if isinstance(outcome, Rejection)}


def test_a_message_that_kills_its_worker_becomes_a_dead_letter_and_its_neighbours_get_verdicts(
    relay: Relay, client: Client, store: redis.Redis
) -> None:
    sent = [message("die" if place == 5 else "solve") for place in range(12)]
    for each in sent:
        client.submit(each)
    ended = relay(most=FAULTS_BEFORE_SUSPICION + FAULTS_ALONE)
    assert ended == FAULTS_BEFORE_SUSPICION + FAULTS_ALONE
    found = outcomes(client, sent)
    assert found.keys() == {each.message_id for each in sent}
    assert rejected(found) == poisoned(sent)
    (letter,) = read_dead_letters(store)
    assert letter.reason is RejectionReason.DELIVERED_TOO_OFTEN
    assert "delivered 4 times without an outcome" in letter.detail
    assert SQEMessage.model_validate_json(letter.body) == sent[5]
    assert not store.exists(FAULTS)


def test_a_message_that_hangs_its_workers_engine_becomes_a_dead_letter(
    relay: Relay, client: Client, store: redis.Redis
) -> None:
    sent = [message("hang /never" if place == 2 else "solve") for place in range(6)]
    client.submit_many(sent)
    ended = relay(most=FAULTS_BEFORE_SUSPICION + FAULTS_ALONE)
    assert ended == FAULTS_BEFORE_SUSPICION + FAULTS_ALONE
    found = outcomes(client, sent)
    assert rejected(found) == {sent[2].message_id}
    assert len(found) == 6
    assert letters(store) == {RejectionReason.DELIVERED_TOO_OFTEN: 1}


def test_only_the_poisonous_messages_of_a_batch_are_lost(
    relay: Relay, client: Client, store: redis.Redis, redis_url: str
) -> None:
    sent = [message("die" if place in {0, 63} else "solve") for place in range(64)]
    neighbours = [message() for _ in range(64)]
    app = create_app(redis_url)
    batch = [each.model_dump_json(exclude_none=True) for each in sent]
    answer = app.send_task(EVALUATE_BATCH, args=[batch], queue=BACKFILL_QUEUE)
    client.submit_many(neighbours, queue=BACKFILL_QUEUE)
    relay(most=FAULTS_BEFORE_SUSPICION + 2 * FAULTS_ALONE)
    found = outcomes(client, sent + neighbours)
    assert len(found) == 128
    assert rejected(found) == poisoned(sent)
    assert letters(store) == {RejectionReason.DELIVERED_TOO_OFTEN: 2}
    listed = [outcome.get("reason", "verdict") for outcome in answer.get(timeout=1)]
    assert listed == ["delivered_too_often", *(["verdict"] * 62), "delivered_too_often"]


def test_a_batch_that_meets_a_bug_many_times_ends_no_worker(
    relay: Relay, client: Client, store: redis.Redis
) -> None:
    sent = [message("bug" if place % 2 else "solve") for place in range(8)]
    sent += [message("bug") for _ in range(8)]
    client.submit_many(sent)
    assert relay(most=0) == 0
    found = outcomes(client, sent)
    assert len(found) == 16
    assert len(rejected(found)) == 12
    assert letters(store) == {RejectionReason.EVALUATION_FAILED: 12}


def test_a_drain_is_no_fault_and_its_messages_come_next(
    tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    held = client.submit(message(f"hold {tmp_path / 'never'}"))
    for _ in range(FAULTS_BEFORE_SUSPICION + 1):
        options = {"shutdown_grace_seconds": 0.1, "visibility_timeout": 60}
        with Worker.start(STUB, tmp_path, redis_url, **options) as worker:
            wait_for(lambda: store.hlen(UNACKED) == 1, "taken")
            client.submit(message())
            client.result(client.submit(message()))
            worker.signal(signal.SIGTERM)
            assert worker.wait() == 0
        client.submit(message())
        assert held in str(store.lindex(LIVE_QUEUE, -1))
        assert not store.exists(FAULTS)


def test_an_item_that_kills_its_workers_before_it_is_read_is_a_dead_letter(site: "Site") -> None:
    before = site.store.xlen(DEAD_LETTERS)
    item = b"nobody reads this"
    digest = hashlib.sha1(item, usedforsecurity=False).hexdigest()
    site.store.hset(FAULTS, digest, "- - - -")
    site.store.lpush(suspects(LIVE_QUEUE), item)
    wait_for(lambda: site.store.xlen(DEAD_LETTERS) > before, "a dead letter")
    letter = list(read_dead_letters(site.store))[-1]
    assert (letter.reason, letter.body) == (RejectionReason.DELIVERED_TOO_OFTEN, item)
    wait_for(lambda: not site.store.exists(FAULTS), "acknowledged")


def test_a_busy_worker_makes_room_for_a_suspect(
    tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    """A worker that always has something in hand must not keep a suspect waiting for ever."""
    with Worker.start(STUB, tmp_path, redis_url, "--slots", "2") as worker:
        gates = [tmp_path / f"gate-{number}" for number in range(40)]
        for gate in gates:
            client.submit(message(f"hold {gate}"))
        wait_for(lambda: store.hlen(UNACKED) == 4, "busy")
        sent = message()
        client.submit(sent)
        store.lmove(LIVE_QUEUE, suspects(LIVE_QUEUE), "LEFT", "LEFT")
        for number, gate in enumerate(gates, start=1):  # never nothing in hand
            if client.poll([sent.message_id]):
                break
            gate.touch()
            wait_for(functools.partial(has_evaluated, worker, number), "evaluated")
        assert client.poll([sent.message_id])
        assert store.llen(LIVE_QUEUE) > 0
        for gate in gates:
            gate.touch()
