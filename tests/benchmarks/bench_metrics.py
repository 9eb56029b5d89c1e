"""The cost of counting, as a share of a message's whole cost for a worker's processor.

Counting is timed by itself, with the verdicts of a real checkpoint; the whole cost is that of a
real worker process between two scrapes, with nothing but the path and with inference.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median

from hrm.evaluation.evaluator import Evaluator
from hrm.inference.config import Inference
from schemas import HaltedBy, SQEMessage
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.runs import interleaved
from tests.benchmarks.setting import THREADS, Setting, accepted_messages
from tests.support.processes import REAL, Worker, wait_for
from tests.support.servers import server
from worker.client import Client
from worker.telemetry.labels import Lane
from worker.telemetry.metrics import Metrics
from worker.telemetry.verdicts import AT_ONCE, Evaluation

TITLE = "Counting"

ENTRIES = 100_000
"""Size of the prediction cache: larger than the number of distinct inputs."""

TIMED = (0.1, 0.9)
"""Shares of the messages between which a worker's processor time is taken."""

COUNTED = 64 * AT_ONCE
"""Verdicts that are counted in a row: a thread's clock is coarse. None of them is left over."""

DEADLINE = 600.0
"""Seconds for a worker to evaluate everything, also on a slow machine."""


def run(setting: Setting) -> str:
    metrics, evaluations = _evaluated(setting)
    counting, path, whole = interleaved(
        [
            partial(_counting, metrics, evaluations),
            partial(_worker, setting, setting.batched, ENTRIES),
            partial(_worker, setting, setting.halting_messages, 0),
        ],
        setting.rounds,
    )
    rows = [
        [name, f"{1e6 * median(seconds):,.1f}", f"{100 * median(counting) / median(seconds):.2f} %"]
        for name, seconds in (
            ("counting a verdict", counting),
            ("a worker, batches, every prediction from the cache", path),
            ("a worker, batches, the q rule without a cache", whole),
        )
    ]
    return paragraphs(
        f"{setting.checkpoints[0].name}, its known messages, live; {setting.slots} slots, "
        f"{THREADS} threads. Microseconds of processor time a message, medians of "
        f"{setting.rounds} rounds. A worker's cost contains the counting.",
        table(["", "µs a message", "counting's share"], rows),
    )


def _messages(setting: Setting, count: int) -> list[SQEMessage]:
    texts = cycle(accepted_messages(setting.checkpoint()))
    return [
        SQEMessage.create(agent_id="planner", prompt=prompt, completion=completion)
        for prompt, completion in islice(texts, count)
    ]


def _evaluated(setting: Setting) -> tuple[Metrics, list[Evaluation]]:
    """A worker's metrics, and what it counts of the known messages."""
    metrics, checkpoint = Metrics(), setting.checkpoint()
    inference = Inference(halting=HaltedBy.Q, slots=setting.slots, threads=THREADS)
    engine = inference.open(checkpoint, setting.device)
    with closing(Evaluator(checkpoint, engine, device="cpu", worker="w")) as evaluator:
        metrics.serves(evaluator)
        count = len(list(accepted_messages(checkpoint)))
        bodies = [each.model_dump(mode="json") for each in _messages(setting, count)]
        pending = [evaluator.submit(body, queued_seconds=0.5) for body in bodies]
        results = [each.result() for each in pending]
    return metrics, [
        Evaluation(verdict, Lane.LIVE, confusions, completion)
        for verdict, confusions, completion, _ in results
    ]


def _counting(metrics: Metrics, evaluations: Sequence[Evaluation]) -> float:
    """Seconds of processor time to count a verdict."""
    began = time.thread_time()
    for each in islice(cycle(evaluations), COUNTED):
        metrics.evaluated(each)
    return (time.thread_time() - began) / COUNTED


def _worker(setting: Setting, count: int, cached: int) -> float:
    """Seconds of processor time that a worker process takes for a message."""
    options = ["--checkpoint", str(setting.checkpoints[0].resolve()), "--halting", HaltedBy.Q]
    options += ["--device", setting.device, "--slots", str(setting.slots), "--dtype", "float32"]
    with (
        tempfile.TemporaryDirectory() as name,
        server(Path(name)) as redis,
        Client(redis.url) as client,
        Worker.start(REAL, Path(name), redis.url, *options, cached_predictions=cached) as worker,
    ):
        worker.wait_until_ready()
        client.submit_many(_messages(setting, count))
        seen = []
        for share in TIMED:
            wait_for(
                lambda least=share * count: worker.total("evaluations_total") >= least,  # type: ignore[misc]
                "evaluated",
                DEADLINE,
            )
            page = worker.scrape()
            seconds = sum(
                each.value for each in page.samples if each.name == "process_cpu_seconds_total"
            )
            seen.append((page.total("evaluations_total"), seconds))
    (before, began), (after, ended) = seen
    return (ended - began) / (after - before)
