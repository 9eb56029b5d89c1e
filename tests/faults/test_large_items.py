"""Items of any size: none leaves Redis whole that is longer than the limit."""

import json
from pathlib import Path
from typing import Any

import pytest
import redis

from schemas import RejectionReason
from tests.support.processes import STUB, Worker, wait_for
from tests.support.stubs import message
from worker.broker.keys import DEAD_LETTERS, FAILURES, LIVE_QUEUE, UNACKED
from worker.broker.streams import KEPT_BYTES, read_dead_letters, read_failures
from worker.client import Client
from worker.client.tasks import MAX_BATCH_BYTES
from worker.settings import Settings

MB = 1_000_000


def resident(worker: Worker) -> int:
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    (line,) = (each for each in status.splitlines() if each.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def sent_by(store: redis.Redis) -> int:
    statistics: dict[str, Any] = store.info("stats")
    return int(statistics["total_net_output_bytes"])


def test_a_huge_item_costs_a_worker_neither_memory_nor_transfer(
    tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    # Parsed, it would take 26 times its length.
    item = b'{"x":[' + b"{}," * (8 * MB) + b"{}]}"
    with (
        Worker.start(STUB, tmp_path, redis_url) as worker,
        Worker.start(STUB, tmp_path, redis_url) as idle,
    ):
        for each in (worker, idle):
            each.wait_until_ready()
        client.result(client.submit(message()))
        peaks, sent = [resident(worker), resident(idle)], sent_by(store)
        for _ in range(3):
            store.lpush(LIVE_QUEUE, item)
        live = client.submit(message())
        assert client.result(live).solved, "the message behind them"
        wait_for(lambda: store.xlen(DEAD_LETTERS) == 3, "dead letters")
        wait_for(lambda: not store.exists(UNACKED), "acknowledged")
        assert sent_by(store) - sent < MB
        assert resident(worker) - peaks[0] < 30 * MB
        assert resident(idle) - peaks[1] < 30 * MB
        assert worker.is_ready()
        assert idle.is_ready()
    letter, *_ = read_dead_letters(store)
    assert (letter.reason, letter.message_id) == (RejectionReason.TOO_LARGE, None)
    assert letter.detail.startswith(f"an item of {len(item)} bytes, but the limit is 8388608: send")
    assert (letter.body, letter.original_bytes) == (item[:KEPT_BYTES], len(item))


def test_the_limit_is_a_setting(
    tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    with Worker.start(STUB, tmp_path, redis_url, max_item_bytes=2000) as worker:
        worker.wait_until_ready()
        assert client.result(client.submit(message())).solved
        client.submit(message("solve " * 1000))
        wait_for(lambda: store.xlen(DEAD_LETTERS) == 1, "a dead letter")


@pytest.mark.parametrize("character", ["x", '"', "\n", "\x01", "\u00e9", "\u6587", "\U0001f642"])
def test_no_batch_of_the_client_exceeds_the_limit(
    client: Client, store: redis.Redis, character: str
) -> None:
    tags = {f"{number}{character * 60}": character * 250 for number in range(16)}
    one = message(character * 2000, tags=tags)
    count = 2 * MAX_BATCH_BYTES // len(json.dumps(one.model_dump_json()))
    client.submit_many([one] * count)
    items: Any = store.lrange(LIVE_QUEUE, 0, -1)
    assert len(items) > 1
    assert max(map(len, items)) < Settings().max_item_bytes


def test_the_streams_are_bounded_in_bytes(
    tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    long = message("fail " + "\U0001f642" * 30_000)
    short = message("fail")
    with Worker.start(STUB, tmp_path, redis_url) as worker:
        worker.wait_until_ready()
        for each in (long, short):
            client.submit(each)
            client.result(each.message_id)
    whole, cut = sorted(read_failures(store), key=lambda each: each.original_bytes or 0)
    assert (whole.message, whole.original_bytes, whole.original_sha1) == (short, None, None)
    assert cut.message.message_id == long.message_id
    assert long.prompt.startswith(cut.message.prompt)
    assert cut.original_bytes == len(long.model_dump_json(exclude_none=True).encode())
    entries: Any = store.xrange(FAILURES)
    assert max(sum(map(len, fields.values())) for _, fields in entries) < 2 * KEPT_BYTES
