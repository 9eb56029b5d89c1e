"""The asyncio form of the client, against a real Redis and a real worker."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest
import redis

from schemas import MessageRejected, Rejection, RejectionReason, SQEMessage
from tests.support.processes import DEADLINE, ROOT, wait_for
from tests.support.stubs import message, verdict
from worker.broker.keys import LIVE_QUEUE, result
from worker.client import outcomes
from worker.client.asyncio import BACKFILL_QUEUE, Client, ResultTimeout
from worker.client.tasks import evaluate_text

if TYPE_CHECKING:
    from tests.conftest import Site


def answer(store: redis.Redis, of: SQEMessage, *, announced: bool = True) -> None:
    """Store a verdict and announce it, as a worker does."""
    key = result(of.message_id)
    store.set(key, f'{{"result":{verdict(of).model_dump_json()}}}')
    if announced:
        store.publish(key, "")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - Redis sets no event
            await asyncio.sleep(0.01)


def run(url: str, test: Callable[[Client], Awaitable[None]]) -> None:
    async def with_client() -> None:
        async with Client(url) as client:
            await test(client)

    asyncio.run(with_client())


def test_messages_get_their_outcomes(site: "Site") -> None:
    async def test(client: Client) -> None:
        one, *others = [message() for _ in range(300)]
        assert await client.submit(one) == one.message_id
        assert (await client.result(one.message_id)).message_id == one.message_id
        ids = await client.submit_many(others, queue=BACKFILL_QUEUE)
        assert ids == [each.message_id for each in others]
        assert {each.message_id async for each in client.results(ids)} == set(ids)
        assert set(await client.poll(ids)) == set(ids)

    run(site.redis_url, test)


def test_a_refused_message_raises_its_reason(site: "Site") -> None:
    async def test(client: Client) -> None:
        await client._send(evaluate_text("{}", "bad-1", LIVE_QUEUE))
        with pytest.raises(MessageRejected) as caught:
            await client.result("bad-1")
        assert caught.value.reason is RejectionReason.MISSING_FIELD
        (outcome,) = [each async for each in client.results(["bad-1"])]
        assert isinstance(outcome, Rejection)

    run(site.redis_url, test)


def test_waiting_tasks_share_one_connection_and_none_is_left(
    redis_url: str, store: redis.Redis
) -> None:
    before = len(store.client_list())
    sent = [message() for _ in range(20)]

    async def test(client: Client) -> None:
        waits = [asyncio.create_task(client.result(each.message_id)) for each in sent]
        await until(lambda: len(store.pubsub_channels()) == len(sent))
        assert len(store.client_list(_type="pubsub")) == 1
        waits.pop().cancel()
        await until(lambda: len(store.pubsub_channels()) == len(sent) - 1)
        for each in sent:
            answer(store, each)
        await asyncio.gather(*waits)
        await until(lambda: not store.pubsub_channels())

    run(redis_url, test)
    # The server notes a closed connection only when it reads from it.
    wait_for(lambda: len(store.client_list()) == before, "no connection is left")


def test_a_cancellation_that_redis_py_forgets_ends_the_wait(
    redis_url: str, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, forgot = asyncio.Event(), False

    async def mget(keys: list[str]) -> list[None]:
        nonlocal forgot
        asked.set()
        try:
            await asyncio.sleep(DEADLINE)
        except asyncio.CancelledError:  # as Python 3.11's wait_for does if it has just finished
            forgot = True
        return [None] * len(keys)

    async def test(client: Client) -> None:
        monkeypatch.setattr(client._redis, "mget", mget)
        wait = asyncio.create_task(client.result("nobody"))
        async with asyncio.timeout(DEADLINE):
            await asked.wait()
            wait.cancel()
            await asyncio.wait([wait])
        assert wait.cancelled()
        await until(lambda: not store.pubsub_channels())

    run(redis_url, test)
    assert forgot


def test_a_lost_connection_is_replaced_and_no_verdict_is_missed(
    redis_url: str, store: redis.Redis
) -> None:
    first, second = message(), message()

    async def test(client: Client) -> None:
        waits = [asyncio.create_task(client.result(each.message_id)) for each in (first, second)]
        await until(lambda: len(store.pubsub_channels()) == 2)
        store.client_kill_filter(_type="pubsub")
        answer(store, first, announced=False)  # as if announced while nobody listened
        await waits[0]
        await until(lambda: len(store.pubsub_channels()) == 1)
        answer(store, second)
        await waits[1]

    run(redis_url, test)


def test_a_verdict_that_was_not_announced_is_found_after_a_while(
    redis_url: str, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "LOOK_SECONDS", 0.3)
    sent = message()

    async def test(client: Client) -> None:
        wait = asyncio.create_task(client.result(sent.message_id))
        await until(lambda: store.pubsub_channels() != [])
        answer(store, sent, announced=False)
        await wait

    run(redis_url, test)


def test_a_missing_outcome_ends_the_wait_in_time(redis_url: str) -> None:
    async def test(client: Client) -> None:
        before = time.monotonic()
        with pytest.raises(ResultTimeout, match=r"1 messages \(such as nobody\) within 0\.2 s"):
            await client.result("nobody", timeout=0.2)
        assert 0.2 <= time.monotonic() - before < 2

    run(redis_url, test)


FUNCTIONS = """
import asyncio
from worker.client.asyncio import BrokerUnreachable, SQEMessage, poll, result, results, submit

async def main():
    asyncio.get_running_loop().slow_callback_duration = 30  # not a word of a busy machine
    message_id = await submit(SQEMessage.create(agent_id="a", prompt="solve", completion="done"))
    verdict = await result(message_id, timeout=30)
    assert [each async for each in results([message_id])] == [verdict]
    assert await poll([message_id]) == {message_id: verdict}

asyncio.run(main())
asyncio.run(main())
"""


def test_the_functions_close_their_client_with_the_event_loop(site: "Site") -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", FUNCTIONS],
        cwd=ROOT,
        env={"SQE_REDIS_URL": site.redis_url},
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
