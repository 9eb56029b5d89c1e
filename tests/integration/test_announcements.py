"""Waiting calls of a client learn of outcomes by one subscription."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from schemas import SQEMessage
from tests.support.processes import DEADLINE, ROOT, wait_for
from tests.support.stubs import message, verdict
from worker.broker.keys import result
from worker.client import Client, ResultTimeout, outcomes


def answer(store: redis.Redis, of: SQEMessage, *, announced: bool = True) -> None:
    """Store a verdict and announce it, as a worker does."""
    key = result(of.message_id)
    with store.pipeline() as pipe:
        pipe.set(key, f'{{"result":{verdict(of).model_dump_json()}}}')
        if announced:
            pipe.publish(key, "")
        pipe.execute()


def listeners(store: redis.Redis) -> int:
    return len(store.client_list(_type="pubsub"))


def channels(store: redis.Redis) -> list[bytes | str]:
    return store.pubsub_channels()


@pytest.fixture
def waiting(client: Client, store: redis.Redis) -> Iterator[tuple[list[SQEMessage], list[float]]]:
    """Twenty messages, each with a thread that waits for its verdict; and when those arrived."""
    sent = [message() for _ in range(20)]
    arrived: list[float] = []

    def wait(each: SQEMessage) -> None:
        assert client.result(each.message_id, DEADLINE).message_id == each.message_id
        arrived.append(time.monotonic())

    with ThreadPoolExecutor(len(sent)) as pool:
        waits = [pool.submit(wait, each) for each in sent]
        wait_for(lambda: len(channels(store)) == len(sent), "everyone listens")
        yield sent, arrived
        for each in waits:
            each.result()


def commands(store: redis.Redis) -> int:
    return int(store.info("stats")["total_commands_processed"])


def test_waiting_threads_share_one_connection_and_send_nothing(
    store: redis.Redis, waiting: tuple[list[SQEMessage], list[float]]
) -> None:
    sent, arrived = waiting
    assert listeners(store) == 1
    time.sleep(0.2)  # for the looks that follow the subscriptions
    before = commands(store)
    time.sleep(1)
    assert commands(store) - before < 10, "none but this test's own"
    answer(store, sent[3])
    wait_for(lambda: len(arrived) == 1, "an announced verdict")
    for each in sent:
        answer(store, each)
    wait_for(lambda: len(arrived) == len(sent), "everything")
    wait_for(lambda: not channels(store), "nobody listens any more")


def test_a_lost_connection_is_replaced_and_no_verdict_is_missed(
    store: redis.Redis, waiting: tuple[list[SQEMessage], list[float]]
) -> None:
    sent, arrived = waiting
    store.client_kill_filter(_type="pubsub")
    answer(store, sent[0], announced=False)  # as if announced while nobody listened
    wait_for(lambda: len(arrived) == 1, "the verdict")
    wait_for(lambda: len(channels(store)) == len(sent) - 1, "everyone else listens again")
    assert listeners(store) == 1
    for each in sent:
        answer(store, each)


def test_a_verdict_that_was_not_announced_is_found_after_a_while(
    client: Client, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "LOOK_SECONDS", 0.3)
    sent = message()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.result, sent.message_id, DEADLINE)
        wait_for(lambda: channels(store) != [], "it listens")
        answer(store, sent, announced=False)
        assert waiting.result().message_id == sent.message_id


def test_an_announcement_in_another_database_is_no_outcome(
    client: Client, redis_url: str, store: redis.Redis
) -> None:
    sent = message()
    with (
        redis.Redis.from_url(redis_url.removesuffix("/0") + "/1") as other,
        ThreadPoolExecutor() as pool,
    ):
        waiting = pool.submit(client.result, sent.message_id, 0.5)
        wait_for(lambda: channels(store) != [], "it listens")
        answer(other, sent)
        with pytest.raises(ResultTimeout):
            waiting.result()


def test_without_permission_for_the_channels_results_still_come(
    redis_url: str, store: redis.Redis
) -> None:
    store.acl_setuser("agent", enabled=True, passwords=["+p"], keys=["*"], commands=["+@all"])
    sent = message()
    with (
        Client(redis_url.replace("//", "//agent:p@")) as limited,
        ThreadPoolExecutor() as pool,
    ):
        waiting = pool.submit(limited.result, sent.message_id, DEADLINE)
        time.sleep(0.2)
        assert channels(store) == []
        answer(store, sent)
        assert waiting.result().message_id == sent.message_id


def test_an_id_given_twice_has_its_outcome_twice(client: Client, store: redis.Redis) -> None:
    sent = message()
    answer(store, sent)
    assert len(list(client.results([sent.message_id] * 2))) == 2


def test_a_closed_client_leaves_no_thread(redis_url: str, store: redis.Redis) -> None:
    before = set(threading.enumerate())
    sent = message()
    answer(store, sent)
    with Client(redis_url) as client:
        client.result(sent.message_id)
        assert len(set(threading.enumerate()) - before) == 1
    assert set(threading.enumerate()) <= before
    assert listeners(store) == 0
    with Client(redis_url) as client, pytest.raises(ResultTimeout):
        client.result("nobody", timeout=0)


FORK = """
import os, sys
from worker.client import Client

client = Client(sys.argv[1])
assert client.result(sys.argv[2]).message_id == sys.argv[2]
child = os.fork()
assert client.result(sys.argv[2]).message_id == sys.argv[2]
if child:
    assert os.waitpid(child, 0)[1] == 0
client.close()
"""


def test_a_forked_process_listens_on_a_connection_of_its_own(
    redis_url: str, store: redis.Redis
) -> None:
    sent = message()
    answer(store, sent)
    done = subprocess.run(
        # Without development mode: redis-py leaves the parent's sockets in a child to the garbage
        # collector, which warns of them or not, and asyncio tells of every slow callback.
        [sys.executable, "-c", FORK, redis_url, sent.message_id],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
