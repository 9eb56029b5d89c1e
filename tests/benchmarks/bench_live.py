"""A live message beside a full backfill, from `submit` to its outcome, with a real worker process.

The worker has the shipped checkpoint and no cache, so every message costs inference.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

from schemas import HaltedBy, SQEMessage
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.runs import percentile
from tests.benchmarks.setting import THREADS, Setting, accepted_messages
from tests.support.processes import REAL, Worker
from tests.support.servers import server
from worker.client import BACKFILL_QUEUE, Client

TITLE = "A live message beside a full backfill"

SHARES = (0.5, 0.99)


def run(setting: Setting) -> str:
    texts = cycle(accepted_messages(setting.checkpoint()))

    def messages(count: int) -> Iterator[SQEMessage]:
        for prompt, completion in islice(texts, count):
            yield SQEMessage.create(agent_id="planner", prompt=prompt, completion=completion)

    def measure(halting: HaltedBy) -> tuple[list[float], list[float]]:
        alone: list[float] = []
        beside: list[float] = []
        for _ in range(setting.rounds):
            with _worker(setting, halting) as (client, worker):
                _seconds(client, messages(setting.slots))  # the first ones warm up
                alone += _seconds(client, messages(setting.live))
                evaluated = worker.total("evaluations_total")
                client.submit_many(messages(setting.backfill), queue=BACKFILL_QUEUE)
                _wait_for_more(worker, evaluated)
                beside += _seconds(client, messages(setting.live))
                evaluated += setting.live + setting.backfill
                if worker.total("evaluations_total") == evaluated:
                    raise RuntimeError("the backfill ended too early: give it more messages")
        return alone, beside

    rows = []
    for halting in HaltedBy:
        alone, beside = measure(halting)
        figures = [[percentile(own, share) for share in SHARES] for own in (alone, beside)]
        rows += [
            [halting.value, name, *(f"{1000 * seconds:,.1f}" for seconds in own), longest]
            for name, own, longest in zip(
                ("alone", "beside the backfill"),
                figures,
                (f"{1000 * max(own):,.1f}" for own in (alone, beside)),
                strict=True,
            )
        ]
        ratios = [one / other for other, one in zip(*figures, strict=True)]
        rows.append([halting.value, "times as long", *(f"{each:.2f}" for each in ratios), ""])
    return paragraphs(
        f"{setting.checkpoints[0].name}, its known messages; {setting.slots} slots, {THREADS} CPU "
        f"threads, no cache; {setting.live} live messages one after the other in each of "
        f"{setting.rounds} runs, first alone, then beside {setting.backfill:,} that wait.",
        table(["rule", "live message", "median, ms", "p99, ms", "longest, ms"], rows, left=2),
    )


@contextmanager
def _worker(setting: Setting, halting: HaltedBy) -> Iterator[tuple[Client, Worker]]:
    """A worker with a Redis of its own, once it is ready."""
    options = ["--checkpoint", str(setting.checkpoints[0].resolve()), "--halting", halting]
    options += ["--device", setting.device, "--slots", str(setting.slots)]
    with (
        tempfile.TemporaryDirectory() as name,
        server(Path(name)) as redis,
        Client(redis.url) as client,
        Worker.start(REAL, Path(name), redis.url, *options, cached_predictions=0) as worker,
    ):
        yield client, worker.wait_until_ready()


def _seconds(client: Client, messages: Iterator[SQEMessage]) -> list[float]:
    """Seconds of each message, from `submit` to its outcome."""
    given = []
    for message in messages:
        started = time.perf_counter()
        client.result(client.submit(message))
        given.append(time.perf_counter() - started)
    return given


def _wait_for_more(worker: Worker, evaluated: int) -> None:
    while worker.total("evaluations_total") == evaluated:
        time.sleep(0.05)
