"""The way of a message, from a full queue to its stored verdict, beside an empty task of Celery.

Real worker processes empty a queue that was filled before they started. The rate is the fall of its
length in the middle of that time: neither a start counts nor the last messages.
"""

import itertools
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import redis

from schemas import HaltedBy, SQEMessage
from tests.benchmarks import plain_celery
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.runs import interleaved, median_ratio
from tests.benchmarks.setting import THREADS, Setting, accepted_messages
from tests.support.processes import REAL, ROOT, Worker
from tests.support.servers import Server, server
from worker.broker.keys import LIVE_QUEUE, NO_NAMESPACE
from worker.child import end_child, start_child
from worker.client.tasks import evaluate, evaluate_batches

TITLE = "The way of a message"

BATCH = 256
"""Messages in an item of a file."""

ITEMS = 32
"""Least number of items of a queue whose fall is timed."""

TIMED = (0.7, 0.1)
"""Shares of the queue's first length between which its fall is timed."""

LOOK_SECONDS = 0.1
"""Pause between two looks at the queue's length, which take time from the worker."""

TURN_SECONDS = 0.01
"""Time for which a process runs before another one does, if they take turns."""

ENTRIES = 100_000
"""Size of the prediction cache: larger than the number of distinct inputs."""


@dataclass(frozen=True)
class Emptied:
    """A queue's fall while it was timed."""

    rate: float
    """Messages a second."""
    round_trips: float
    """Times that Redis read from a connection, a message. It reads at most 16 kB at once, so that
    a request with many outcomes counts as several."""
    cores: float
    """Number of cores at work, on average, for all programs of the machine."""


def run(setting: Setting) -> str:
    return paragraphs(_path(setting), _processes(setting))


def _path(setting: Setting) -> str:
    """Cached predictions cost nothing, so these rates are the path's own."""
    given = interleaved(
        [
            partial(plain, setting),
            partial(emptied, setting, setting.singles, 1),
            partial(emptied, setting, setting.batched, BATCH),
        ],
        setting.rounds,
    )
    celery = [each.rate for each in given[0]]
    rows = [
        [
            name,
            f"{median(each.rate for each in own):,.0f}",
            f"{median_ratio([each.rate for each in own], celery):.2f}",
            f"{median(each.round_trips for each in own):.3f}",
        ]
        for name, own in zip(
            (
                "Celery, one process, an empty task",
                "a worker, single messages",
                f"a worker, batches of {BATCH}",
            ),
            given,
            strict=True,
        )
    ]
    return paragraphs(
        f"{setting.checkpoints[0].name}, its known messages, every prediction from the cache. "
        f"Medians of {setting.rounds} rounds, in each of which every process has a Redis of its "
        "own; a ratio is the median of the rounds' own. Round trips are Redis' reads from its "
        "connections.",
        table(["emptied by", "messages a second", "ratio", "round trips a message"], rows),
    )


def _processes(setting: Setting) -> str:
    def cases(part: int) -> list[tuple[str, int, HaltedBy, int, int]]:
        return [
            ("single messages", 1, HaltedBy.Q, ENTRIES, setting.singles // part),
            (f"batches of {BATCH}", BATCH, HaltedBy.Q, ENTRIES, setting.batched // part),
        ]

    return paragraphs(
        two_processes(setting, cases(1)),
        "The same with each process stopped for half of the time, so that two of them and Redis "
        "have as many cores as they need:",
        two_processes(setting, cases(2), in_turns=True),
    )


def two_processes(
    setting: Setting,
    cases: Sequence[tuple[str, int, HaltedBy, int, int]],
    *,
    in_turns: bool = False,
) -> str:
    """The gain from a second process on the same queue.

    Args:
        setting: The setting.
        cases: What the messages are called, how many are in an item, the halting rule, the cache's
            entries, and the number of messages.
        in_turns: Whether each process runs for half of the time only, and not beside the other.
    """
    rows = []
    for name, batch, halting, cached, count in cases:
        runs = [
            partial(
                emptied,
                setting,
                count,
                batch,
                halting=halting,
                cached=cached,
                processes=processes,
                threads=1,
                in_turns=in_turns,
            )
            for processes in (1, 2)
        ]
        given = interleaved(runs, setting.rounds)
        one, two = ([each.rate for each in own] for own in given)
        rows.append(
            [
                name,
                halting.value,
                f"{median(one):,.0f}",
                f"{median(two):,.0f}",
                f"{median_ratio(two, one):.2f}",
                *(f"{median(each.cores for each in own):.2f}" for own in given),
            ]
        )
    return paragraphs(
        "Processes of one thread each on one queue, and how many of the machine's "
        f"{os.cpu_count()} cores were at work, Redis and all else included:",
        table(
            ["messages", "rule", "one", "two", "ratio", "cores, one", "cores, two"], rows, left=2
        ),
    )


def plain(setting: Setting) -> Emptied:
    """Empty a queue of single messages by Celery's own worker with an empty task."""
    command = [sys.executable, "-m", "celery", "-A", plain_celery.__name__, "worker", "--pool=solo"]
    with _redis() as (folder, store):
        with plain_celery.app.connection_for_write(store.url) as connection:
            # A fourth lasts as long as all of them do with a worker.
            for each in _messages(setting, setting.singles // 4):
                arguments = (each.model_dump(mode="json", exclude_none=True),)
                plain_celery.nothing.apply_async(arguments, connection=connection)
        with (folder / "log").open("wb") as log:
            environ = {**os.environ, "SQE_REDIS_URL": store.url}
            process = start_child(command, log=log, cwd=ROOT, environ=environ)
            try:
                return _fall(store.store, plain_celery.QUEUE, 1)
            finally:
                end_child(process)


def emptied(
    setting: Setting,
    count: int,
    batch: int,
    *,
    halting: HaltedBy = HaltedBy.Q,
    cached: int = ENTRIES,
    processes: int = 1,
    threads: int = THREADS,
    in_turns: bool = False,
) -> Emptied:
    """Empty a queue of `count` messages, `batch` in an item, by workers with the checkpoint."""
    workers = filled(
        setting,
        count,
        batch,
        halting=halting,
        cached=cached,
        processes=processes,
        threads=threads,
    )
    with workers as (store, started), ExitStack() as turns:
        if in_turns:
            turns.enter_context(_taking_turns(started))
        return _fall(store, LIVE_QUEUE, batch)


@contextmanager
def filled(
    setting: Setting,
    count: int,
    batch: int,
    *,
    halting: HaltedBy,
    cached: int,
    processes: int = 1,
    threads: int = THREADS,
) -> Iterator[tuple[redis.Redis, list[Worker]]]:
    """Fill a queue with `count` messages, `batch` in an item, and start workers for it."""
    options = ["--checkpoint", str(setting.checkpoints[0].resolve()), "--halting", halting]
    options += ["--device", setting.device, "--slots", str(setting.slots)]
    options += ["--threads", str(threads), "--dtype", "float32"]
    with _redis() as (folder, to), ExitStack() as workers:
        messages = _messages(setting, count)
        tasks = (
            (evaluate(each, LIVE_QUEUE) for each in messages)
            if batch == 1
            else (
                task
                for each in iter(lambda: list(islice(messages, batch)), [])
                for task in evaluate_batches(each, LIVE_QUEUE)
            )
        )
        for task in tasks:
            for command in task.commands(NO_NAMESPACE, 0):
                to.store.execute_command(*command)  # type: ignore[no-untyped-call]
        started = [
            workers.enter_context(
                Worker.start(REAL, folder, to.url, *options, cached_predictions=cached)
            )
            for _ in range(processes)
        ]
        yield to.store, started


def _messages(setting: Setting, count: int) -> Iterator[SQEMessage]:
    texts = cycle(accepted_messages(setting.checkpoint()))
    for prompt, completion in islice(texts, count):
        yield SQEMessage.create(agent_id="planner", prompt=prompt, completion=completion)


@contextmanager
def _redis() -> Iterator[tuple[Path, Server]]:
    with tempfile.TemporaryDirectory() as name, server(Path(name)) as started:
        yield Path(name), started


@contextmanager
def _taking_turns(workers: Sequence[Worker]) -> Iterator[None]:
    """Let one or two workers run for half of the time each, one after the other."""
    ended = threading.Event()

    def change() -> None:
        for turn in itertools.cycle((0, 1)):
            for number, worker in enumerate(workers):
                worker.signal(signal.SIGCONT if number == turn else signal.SIGSTOP)
            if ended.wait(TURN_SECONDS):
                break

    changing = threading.Thread(target=change)
    changing.start()
    try:
        yield
    finally:
        ended.set()
        changing.join()
        for worker in workers:
            worker.signal(signal.SIGCONT)


def _fall(store: redis.Redis, queue: str, batch: int) -> Emptied:
    """Time how the length of `queue` falls while somebody empties it."""
    first, looks = store.llen(queue), 0
    seen: list[tuple[float, int, int, float]] = []
    for share in TIMED:
        while (left := store.llen(queue)) > share * first:
            looks += 1
            time.sleep(LOOK_SECONDS)
        reads = store.info("stats")["total_reads_processed"]
        seen.append((time.perf_counter(), left, reads - looks, _busy_seconds()))
    (started, before, reads, busy), (ended, after, reads_later, busy_later) = seen
    messages, seconds = batch * (before - after), ended - started
    return Emptied(
        messages / seconds, (reads_later - reads) / messages, (busy_later - busy) / seconds
    )


def _busy_seconds() -> float:
    """Seconds for which the machine's cores have been at work since its start: proc(5), stat."""
    user, nice, system = Path("/proc/stat").read_text().split(maxsplit=4)[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")
