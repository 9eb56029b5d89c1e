"""The memory that Redis needs at a rate of messages, computed from bytes that are measured.

The server's own figure (`used_memory`) is read before and after, on a new server each time. Markers
are random numbers, as hashes are. Messages are those that the checkpoint was trained on, and
verdicts predict as many tokens as the completion has words.
"""

import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import redis

from schemas import SQEMessage
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.setting import Setting, accepted_messages
from tests.support.markers import store_markers
from tests.support.stubs import verdict, with_every_token
from worker.broker import embedded
from worker.broker.keys import BACKFILL_QUEUE, NO_NAMESPACE
from worker.client.tasks import evaluate_batches
from worker.delivery.outcomes import Delivery, Entry
from worker.delivery.scripts import load_scripts
from worker.settings import Settings

TITLE = "Redis memory"

RATES = (100, 1_000, 10_000)

LIVES = 1.5
"""Longest life of a marker, in windows: half a window's markers expire a window later, together."""

CALL = 64
"""Outcomes that are stored by one call."""


def run(setting: Setting) -> str:
    markers = [_bytes_each(count, _store_markers) for count in setting.markers]
    count = setting.markers[0]
    texts = accepted_messages(setting.checkpoint())
    messages = list(islice(_messages(texts), count))
    failures = [each.model_copy(update={"prompt": f"fail: {each.prompt}"}) for each in messages]
    result = _bytes_each(count, lambda store, _: _deliver(store, messages)) - markers[0]
    entry = _bytes_each(count, lambda store, _: _deliver(store, failures, 0)) - markers[0]
    waiting = _bytes_each(count, lambda store, _: _enqueue(store, messages))
    rows = [
        *zip((f"a marker, of {each:,}" for each in setting.markers), markers, strict=True),
        ("a result", result),
        ("an unsolved message in the stream", entry),
        ("a message that waits, in a batch", waiting),
    ]
    length = statistics.mean(len((prompt + completion).encode()) for prompt, completion in texts)
    return paragraphs(
        f"Messages of {length:,.0f} bytes in the mean; the embedded server.",
        table(["what Redis keeps", "bytes"], [[name, f"{size:,.1f}"] for name, size in rows]),
        "GB at most, with the default window, without streams and messages that wait:",
        table(
            ["messages a second", "results are kept", "markers", "results", "both"],
            [
                _gigabytes(rate, seconds, max(markers), result)
                for rate in RATES
                for seconds in (Settings().result_expires, 60, 0)
            ],
            left=2,
        ),
        "Time of the server's main thread for an outcome with its marker and its result:",
        table(
            ["outcomes in a call", "µs"],
            [[str(call), f"{_microseconds(messages, call):.1f}"] for call in (1, 16, CALL)],
        ),
    )


def _gigabytes(rate: int, seconds: int, marker: float, result: float) -> list[str]:
    markers = rate * Settings().counted_expires * LIVES * marker
    results = rate * seconds * result
    sizes = [f"{each / 1e9:.2f}" for each in (markers, results, markers + results)]
    return [f"{rate:,}", f"{seconds} s", *sizes]


def _bytes_each(count: int, fill: Callable[[redis.Redis, int], None]) -> float:
    with _server() as store:
        fill(store, CALL)  # loads the script
        store.flushall()
        before = _memory(store)
        fill(store, count)
        return (_memory(store) - before) / count


def _memory(store: redis.Redis) -> int:
    """Bytes in use, without those of connections and of the garbage of scripts."""
    used = store.info("memory")
    kept: int = used["used_memory"] - used["mem_clients_normal"] - used["used_memory_vm_total"]
    return kept


@contextmanager
def _server() -> Iterator[redis.Redis]:
    with (
        tempfile.TemporaryDirectory() as folder,
        embedded.start(Path(folder)) as server,
        redis.Redis.from_url(server.url) as store,
    ):
        yield store


def _store_markers(store: redis.Redis, count: int) -> None:
    for first in range(0, count, CALL):
        several = min(CALL, count - first)
        store_markers(store, (str(random.getrandbits(63)) for _ in range(several)))


def _messages(texts: Sequence[tuple[str, str]]) -> Iterator[SQEMessage]:
    for prompt, completion in cycle(texts):
        yield SQEMessage.create(agent_id="planner", prompt=prompt, completion=completion)


def _deliver(
    store: redis.Redis,
    messages: Sequence[SQEMessage],
    result_seconds: float | None = None,
    call: int = CALL,
) -> None:
    # Every failure is kept, to be weighed.
    settings = Settings(failures_per_hour=len(messages), failures_maxbytes=2**40)
    delivery = Delivery(settings, worker="worker-1:4711")
    load_scripts(store)
    for first in range(0, len(messages), call):
        entries = []
        for each in messages[first : first + call]:
            made = with_every_token(verdict(each), each)
            answer = delivery.verdict(made, each, None, result_seconds)
            entries.append(Entry(answer, made.model_dump_json()))
        with store.pipeline(transaction=False) as pipe:
            delivery.store(pipe, entries, f"token {first}", "name")
            pipe.execute()


def _enqueue(store: redis.Redis, messages: Sequence[SQEMessage]) -> None:
    for task in evaluate_batches(messages, BACKFILL_QUEUE, None):
        for command in task.commands(NO_NAMESPACE, 0):
            store.execute_command(*command)  # type: ignore[no-untyped-call]


def _microseconds(messages: Sequence[SQEMessage], call: int) -> float:
    with _server() as store:
        _deliver(store, messages[:call])  # loads the script
        before = _processor_time(store)
        _deliver(store, messages, call=call)
        return (_processor_time(store) - before) * 1e6 / len(messages)


def _processor_time(store: redis.Redis) -> float:
    used = store.info("cpu")
    seconds: float = used["used_cpu_user_main_thread"] + used["used_cpu_sys_main_thread"]
    return seconds
