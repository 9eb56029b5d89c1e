"""Several deployments in one Redis, each with the beginning of every name to itself."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery

from tests.support.processes import REAL, STUB, Worker, wait_for
from tests.support.servers import Server, server
from tests.support.stubs import message
from worker.broker.app import EVALUATE, EVALUATE_BATCH
from worker.broker.keys import DEAD_LETTERS, FAILURES, LIVE_QUEUE, NO_NAMESPACE, UNACKED, Namespace
from worker.broker.streams import read_dead_letters, read_failures
from worker.client import BACKFILL_QUEUE, Client
from worker.client import asyncio as awaited

STAGING, PRODUCTION = Namespace("staging"), Namespace("production")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Server]:
    """A Redis Cluster of one node, which refuses commands with keys of several slots."""
    with server(tmp_path, "--cluster-enabled", "yes") as node:
        node.store.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")  # type: ignore[no-untyped-call]
        # A reply before that would say that the cluster is down.
        wait_for(lambda: b"cluster_state:ok" in _info(node.store), "the cluster is up")
        yield node


def _info(store: redis.Redis) -> bytes:
    info: bytes | str = store.execute_command("CLUSTER", "INFO")  # type: ignore[no-untyped-call]
    return info if isinstance(info, bytes) else info.encode()


def names(store: redis.Redis, namespace: Namespace) -> set[str]:
    """Every name that is there."""
    keys = {key.decode() for key in store.scan_iter(f"{namespace.prefix}*")}
    return {namespace.name_of(key) for key in keys}


def celery_app(url: str, namespace: Namespace) -> Celery:
    """A producer's application, as the guide says."""
    prefix = {"global_keyprefix": namespace.prefix}
    app = Celery(broker=url, backend=url, set_as_current=False)
    app.conf.update(broker_transport_options=prefix, result_backend_transport_options=prefix)
    return app


async def awaited_one(url: str) -> None:
    async with awaited.Client(url, namespace="staging") as client:
        assert (await client.result(await client.submit(message()))).solved


def test_everything_of_a_deployment_is_in_its_namespace_and_in_one_slot(
    tmp_path: Path, cluster: Server
) -> None:
    url, store = cluster.url, cluster.store
    file = tmp_path / "messages.jsonl"
    file.write_text("".join(f"{message().model_dump_json()}\n" for _ in range(2)))
    with (
        Worker.start(STUB, tmp_path, url, namespace="staging") as worker,
        Client(url, namespace="staging") as client,
    ):
        worker.wait_until_ready()
        sent = [client.submit(message(prompt)) for prompt in ("solve", "fail", "nan")]
        sent += client.submit_many([message(), message()], queue=BACKFILL_QUEUE)
        assert len(list(client.results(sent))) == 5
        asyncio.run(awaited_one(url))
        batch = [message().model_dump_json()]
        answer = celery_app(url, STAGING).send_task(EVALUATE_BATCH, [batch], queue=LIVE_QUEUE)
        assert len(answer.get(timeout=30)) == 1
        done = subprocess.run(
            [REAL[0], "submit", "--data-path", file],
            env={**os.environ, "SQE_REDIS_URL": url, "SQE_NAMESPACE": "staging"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        gate = tmp_path / "gate"
        client.submit(message(f"hold {gate}"))
        wait_for(lambda: store.hlen(STAGING.key(UNACKED)) == 1, "in hand")
        worker.signal(signal.SIGTERM)
        gate.touch()
        assert worker.wait() == 0
    assert {FAILURES, DEAD_LETTERS} < names(store, STAGING)
    assert names(store, NO_NAMESPACE) == {STAGING.key(name) for name in names(store, STAGING)}
    assert [each.message.prompt for each in read_failures(store, STAGING)] == ["fail"]
    assert [each.queue for each in read_dead_letters(store, STAGING)] == [LIVE_QUEUE]


def test_deployments_in_one_redis_do_not_see_each_other(
    tmp_path: Path, redis_url: str, store: redis.Redis
) -> None:
    with (
        Worker.start(STUB, tmp_path, redis_url, namespace="staging") as one,
        Worker.start(STUB, tmp_path, redis_url, namespace="production") as other,
        Client(redis_url, namespace="staging") as staging,
        Client(redis_url, namespace="production") as production,
    ):
        one.wait_until_ready()
        other.wait_until_ready()
        sent = message("fail")
        for client in (staging, production):
            client.result(client.submit(sent))
        many = production.submit_many(message() for _ in range(10))
        assert len(list(production.results(many))) == 10
        wait_for(lambda: other.total("evaluations_total") == 11, "counted")
        assert one.total("evaluations_total") == 1
        assert store.xlen(STAGING.key(FAILURES)) == store.xlen(PRODUCTION.key(FAILURES)) == 1
        assert not staging.poll(many)


def test_a_dead_workers_message_stays_in_its_namespace(
    tmp_path: Path, redis_url: str, store: redis.Redis
) -> None:
    gate = tmp_path / "gate"
    with Client(redis_url, namespace="staging") as client:
        with Worker.start(STUB, tmp_path, redis_url, namespace="staging") as first:
            first.wait_until_ready()
            held = client.submit(message(f"hold {gate}"))
            wait_for(lambda: store.hlen(STAGING.key("sqe:unacked")) == 1, "taken")
            first.process.kill()
        gate.touch()
        options = {"namespace": "staging", "visibility_timeout": 1}
        with Worker.start(STUB, tmp_path, redis_url, **options):
            assert client.result(held).solved


def test_a_celery_task_needs_no_namespace_in_its_queue(tmp_path: Path, redis_url: str) -> None:
    app = celery_app(redis_url, PRODUCTION)
    with Worker.start(STUB, tmp_path, redis_url, namespace="production") as worker:
        worker.wait_until_ready()
        answer = app.send_task(EVALUATE, [message().model_dump_json()], queue=LIVE_QUEUE)
        assert answer.get(timeout=30)["solved"]
