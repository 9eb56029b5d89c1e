"""A Redis without free memory: it takes no more messages, and workers empty it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.support.processes import STUB, Worker, wait_for
from tests.support.stubs import message
from worker.broker.app import EVALUATE_BATCH, create_app
from worker.broker.keys import LIVE_QUEUE, UNACKED, UNACKED_INDEX
from worker.client import BrokerUnreachable, Client

SHORT = 1.0
"""The shortest visibility timeout."""


@pytest.fixture
def fill(store: redis.Redis, client: Client) -> Callable[[], None]:
    """Sets a limit below what the server needs when it is empty, so that it stays full."""

    def run() -> None:
        store.config_set("maxmemory", "100kb")
        with pytest.raises(BrokerUnreachable, match="maxmemory"):
            client.submit(message())

    return run


def test_a_worker_that_starts_empties_a_full_redis(
    tmp_path: Path,
    redis_url: str,
    client: Client,
    store: redis.Redis,
    fill: Callable[[], None],
) -> None:
    sent = [client.submit(message()) for _ in range(200)]
    batch = [message().model_dump_json() for _ in range(3)]
    answer = create_app(redis_url).send_task(EVALUATE_BATCH, args=[batch])
    # Left behind by a dead worker.
    item = store.rpop(LIVE_QUEUE)
    assert isinstance(item, bytes)
    store.hset(UNACKED, "sqe.evaluate/dead", item)
    store.zadd(UNACKED_INDEX, {"sqe.evaluate/dead": 1.0})
    fill()
    store.config_resetstat()
    with Worker.start(STUB, tmp_path, redis_url) as worker:
        worker.wait_until_ready()
        assert {each.message_id for each in client.results(sent)} == set(sent)
        assert len(answer.get(timeout=30)) == 3
        wait_for(lambda: not store.exists(UNACKED, LIVE_QUEUE), "all acknowledged")
        assert worker.is_ready()
        assert worker.total("evaluations_total") == 203
        assert "cmdstat_multi" not in store.info("commandstats"), "Redis 7.0 refuses transactions"
        assert "cannot " not in worker.log.read_text()


def test_a_worker_keeps_its_message_while_redis_is_full_and_is_ready_when_idle(
    tmp_path: Path,
    redis_url: str,
    client: Client,
    store: redis.Redis,
    fill: Callable[[], None],
) -> None:
    gate = tmp_path / "gate"
    with Worker.start(STUB, tmp_path, redis_url, visibility_timeout=SHORT) as worker:
        worker.wait_until_ready()
        held = client.submit(message(f"hold {gate}"))
        wait_for(lambda: store.hlen(UNACKED) == 1, "taken")
        fill()
        (tag,) = store.hkeys(UNACKED)
        taken = store.zscore(UNACKED_INDEX, tag) or 0.0
        wait_for(lambda: (store.zscore(UNACKED_INDEX, tag) or 0.0) > taken + 3 * SHORT, "renewed")
        gate.touch()
        assert client.result(held).solved
        wait_for(lambda: not store.exists(UNACKED), "acknowledged")
        looks = store.info("commandstats")["cmdstat_evalsha"]["calls"]
        wait_for(lambda: store.info("commandstats")["cmdstat_evalsha"]["calls"] > looks + 3, "idle")
        assert worker.is_ready()
        assert worker.total("duplicates_total") == 0
        assert "cannot " not in worker.log.read_text()
        store.config_set("maxmemory", "0")
        assert client.result(client.submit(message())).solved
