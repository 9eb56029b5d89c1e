"""Requests to reload over a real Redis: every worker hears them, also after a lost connection."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from tests.support.permissions import limited_url
from tests.support.processes import DEADLINE, wait_for
from tests.support.servers import Proxy
from worker.broker.errors import RedisUnfit
from worker.broker.keys import NO_NAMESPACE, RELOAD, Namespace
from worker.delivery.requirements import Requirements
from worker.process import reload_requests
from worker.process.reload import Reloaded
from worker.process.reload_requests import Asked, Listener, ReloadError
from worker.settings import Settings
from worker.telemetry.labels import Reload

DONE = Reloaded(Reload.RELOADED, "next (5678)", before="stub (1234)")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload_requests, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(reload_requests, "RETRY_SECONDS", 0.01)


class Worker:
    """Hears requests as a worker does, and answers with `end` once it is told to."""

    def __init__(self, client: redis.Redis, namespace: Namespace, name: str, end: Reloaded) -> None:
        self.asked: list[str | None] = []
        self.end = end
        self.answers = threading.Event()
        self.answers.set()
        self.listener = Listener(client, namespace, name, self.ask)

    def ask(self, checkpoint: str | None, on_reloaded: Callable[[Reloaded], object]) -> None:
        self.asked.append(checkpoint)

        def answer() -> None:
            self.answers.wait(DEADLINE)
            on_reloaded(self.end)

        threading.Thread(target=answer, daemon=True).start()


@contextlib.contextmanager
def listening(
    store: redis.Redis,
    url: str,
    name: str,
    end: Reloaded = DONE,
    namespace: Namespace = NO_NAMESPACE,
) -> Iterator[Worker]:
    with redis.Redis.from_url(url) as client:
        worker = Worker(client, namespace, name, end)
        before = heard_by(store, namespace)
        worker.listener.start()
        wait_for(lambda: heard_by(store, namespace) == before + 1, "listening")
        yield worker
        worker.listener.stop()
        worker.listener._thread.join(DEADLINE)


def heard_by(store: redis.Redis, namespace: Namespace = NO_NAMESPACE) -> int:
    ((_, count),) = store.pubsub_numsub(namespace.key(RELOAD))
    return int(count)


def test_every_worker_of_the_namespace_is_asked_and_answers_for_itself(
    store: redis.Redis, redis_url: str
) -> None:
    refused = Reloaded(Reload.REFUSED, "stub (1234)", reason="no checkpoint 'next'")
    with (
        listening(store, redis_url, "a") as first,
        listening(store, redis_url, "b", refused) as second,
        listening(store, redis_url, "c", namespace=Namespace("staging")) as other,
    ):
        asked = Asked(store, NO_NAMESPACE, "next")
        assert asked.workers == 2
        answers = {each.worker: each for each in asked.answers(DEADLINE)}
    assert (first.asked, second.asked, other.asked) == (["next"], ["next"], [])
    assert answers["a"].model_dump() == {
        "worker": "a",
        "result": "reloaded",
        "serving": "next (5678)",
        "before": "stub (1234)",
        "reason": None,
    }
    assert (answers["b"].result, answers["b"].reason) == ("refused", "no checkpoint 'next'")
    assert not store.keys("*"), "nothing is left in Redis"


def test_a_worker_that_takes_too_long_is_missing_among_the_answers(
    store: redis.Redis, redis_url: str
) -> None:
    with listening(store, redis_url, "a"), listening(store, redis_url, "slow") as slow:
        slow.answers.clear()
        asked = Asked(store, NO_NAMESPACE, None)
        assert asked.workers == 2
        assert next(asked.answers(DEADLINE)).worker == "a"
        assert list(asked.answers(0.01)) == []
        slow.answers.set()
        assert next(asked.answers(DEADLINE)).worker == "slow"


def test_without_a_worker_the_error_says_what_to_check(store: redis.Redis) -> None:
    with pytest.raises(ReloadError, match="no worker listens: start one, or check SQE_REDIS_URL"):
        Asked(store, NO_NAMESPACE, None)


def test_without_redis_too() -> None:
    with (
        redis.Redis(port=1) as nowhere,
        pytest.raises(ReloadError, match=r"Redis is not reachable .*: check SQE_REDIS_URL"),
    ):
        Asked(nowhere, NO_NAMESPACE, None)


def test_what_is_no_request_is_ignored(
    store: redis.Redis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(store, redis_url, "a") as worker:
        for wrong in ("", "7", "[]", '{"checkpoint": "x"}', '{"id": 7}', b"\xff"):
            store.publish(RELOAD, wrong)
        assert list(Asked(store, NO_NAMESPACE, None).answers(DEADLINE))
    assert worker.asked == [None]
    assert [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING] == [
        "a request to reload has an unknown form and is ignored"
    ] * 6


@pytest.mark.parametrize("how", ["cut", "silent"])
def test_a_lost_connection_is_replaced(
    store: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(reload_requests, "PING_SECONDS", 0.2)
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    with (
        Proxy(port).running() as proxy,
        listening(store, redis_url.replace(str(port), str(proxy.port)), "a") as worker,
    ):
        ids = {each["id"] for each in store.client_list(_type="pubsub")}
        with proxy.silent() if how == "silent" else contextlib.nullcontext():
            proxy.cut() if how == "cut" else None
            # The connection that is silent counts until Redis notices that it has ended.
            if how == "silent":
                wait_for(lambda: trouble(worker), "it is noticed")
        wait_for(
            lambda: bool({each["id"] for each in store.client_list(_type="pubsub")} - ids),
            "another connection",
        )
        wait_for(lambda: heard_by(store) == 1, "and it listens")
        (answer,) = Asked(store, NO_NAMESPACE, "next").answers(DEADLINE)
        assert answer.worker == "a"


def trouble(worker: Worker) -> bool:
    return bool(worker.listener._trouble._failing)


def test_a_worker_that_may_not_listen_says_so_at_its_start(
    store: redis.Redis, redis_url: str
) -> None:
    url = limited_url(store, redis_url, "-subscribe")
    with (
        redis.Redis.from_url(url) as limited,
        pytest.raises(RedisUnfit, match="may not run SUBSCRIBE on 'sqe:reload'"),
    ):
        Requirements(Settings()).check(limited)
