"""Every message that a worker took is settled, returned or in hand: at each scrape, and at the end.

Real Redis and real worker processes, whose evaluator is a stub.
"""

import signal
from contextlib import ExitStack
from pathlib import Path

import redis
from prometheus_client.parser import text_string_to_metric_families

from tests.support.flows import flow
from tests.support.processes import STUB, Worker, wait_for
from tests.support.stubs import message
from worker.broker.keys import LIVE_QUEUE, UNACKED
from worker.client import BACKFILL_QUEUE, Client
from worker.telemetry.flow import Flow
from worker.telemetry.scrape import Scrape

QUEUES = (LIVE_QUEUE, BACKFILL_QUEUE)


def last_page(file: Path) -> Scrape:
    """The metrics of a worker at its end."""
    families = text_string_to_metric_families(file.read_text())
    return Scrape(tuple(sample for family in families for sample in family.samples))


def test_at_each_scrape_no_message_is_missing(
    tmp_path: Path, redis_url: str, client: Client
) -> None:
    gate = tmp_path / "gate"
    with Worker.start(STUB, tmp_path, redis_url) as worker:
        worker.wait_until_ready()
        assert {flow(worker.scrape(), queue) for queue in QUEUES} == {Flow(0, 0, 0, 0)}
        held = client.submit(message(f"hold {gate}"))
        wait_for(lambda: flow(worker.scrape(), LIVE_QUEUE) == Flow(1, 0, 0, 1), "in hand")
        batches = (message("fail" if place % 9 else "nan") for place in range(900))
        sent = client.submit_many(batches, queue=BACKFILL_QUEUE)
        sent += [client.submit(message("solve", message_id="twice")) for _ in range(2)]
        sent += [client.submit(message(f"bug-once {tmp_path / 'bug'}"))]
        wait_for(lambda: flow(worker.scrape(), BACKFILL_QUEUE).settled == 900, "settled")
        gate.touch()
        assert len(list(client.results([*sent, held]))) == 904
        wait_for(lambda: flow(worker.scrape(), LIVE_QUEUE) == Flow(5, 4, 1, 0), "settled")
        page = worker.scrape()
        assert flow(page, BACKFILL_QUEUE) == Flow(900, 900, 0, 0)
        counted = ("evaluations_total", "rejected_total", "duplicates_total")
        assert [page.total(name) for name in counted] == [803, 100, 1]
        assert page.total("task_messages_count") == 9
        assert page.total("task_messages_sum") == 905
        for request in ("take", "store"):
            assert page.total("redis_request_seconds_count", request=request) > 0


def test_what_goes_back_at_the_end_is_returned_and_another_worker_settles_it(
    tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    gate, file = tmp_path / "gate", tmp_path / "last"
    options = ("--last-page", str(file))
    with Worker.start(STUB, tmp_path, redis_url, *options, shutdown_grace_seconds=0.3) as first:
        batch = [message(f"hold {gate}" if place % 3 else "solve") for place in range(9)]
        sent = client.submit_many(batch, queue=BACKFILL_QUEUE)
        sent.append(client.submit(message(f"hold {gate}")))
        wait_for(lambda: flow(first.scrape(), BACKFILL_QUEUE) == Flow(9, 3, 0, 6), "under way")
        wait_for(lambda: flow(first.scrape(), LIVE_QUEUE).in_hand == 1, "taken")
        first.signal(signal.SIGTERM)
        assert first.wait() == 0
    assert flow(last_page(file), BACKFILL_QUEUE) == Flow(9, 3, 6, 0)
    assert flow(last_page(file), LIVE_QUEUE) == Flow(1, 0, 1, 0)
    assert last_page(file).total("state", state="stopping") == 1
    gate.touch()
    with Worker.start(STUB, tmp_path, redis_url) as second:
        assert len(list(client.results(sent))) == 10
        wait_for(lambda: store.hlen(UNACKED) == 0, "acknowledged")
        assert flow(second.scrape(), BACKFILL_QUEUE) == Flow(6, 6, 0, 0)
        assert flow(second.scrape(), LIVE_QUEUE) == Flow(1, 1, 0, 0)


def test_what_a_dead_worker_left_is_restored_and_settled(
    tmp_path: Path, redis_url: str, client: Client
) -> None:
    gate = tmp_path / "gate"
    with ExitStack() as workers:
        first, second = (
            workers.enter_context(Worker.start(STUB, tmp_path, redis_url, visibility_timeout=1.0))
            for _ in range(2)
        )
        second.wait_until_ready().signal(signal.SIGSTOP)
        first.wait_until_ready()
        sent = client.submit_many([message(f"hold {gate}") for _ in range(5)])
        sent.append(client.submit(message(f"hold {gate}")))
        wait_for(lambda: flow(first.scrape(), LIVE_QUEUE).in_hand == 6, "taken")
        first.process.kill()
        gate.touch()
        second.signal(signal.SIGCONT)
        assert len(list(client.results(sent))) == 6
        wait_for(lambda: second.scrape().total("restored_total", queue=LIVE_QUEUE) == 6, "counted")
        wait_for(lambda: flow(second.scrape(), LIVE_QUEUE) == Flow(6, 6, 0, 0), "settled")
        assert second.scrape().total("restored_total", queue=BACKFILL_QUEUE) == 0
        assert second.scrape().total("redis_request_seconds_count", request="restore") > 0
