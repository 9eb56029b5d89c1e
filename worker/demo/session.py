"""Runs the demo: starts a worker, lets the agent send, collects what comes back.

Knows processes, the queue and the worker's health side; what is sent is `worker.demo.traffic`,
what is counted `worker.demo.tally`, what is shown `worker.demo.view`.
"""

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import redis

from worker.broker import keys
from worker.broker.streams import entries_added
from worker.client import Client
from worker.demo.tally import Account, Tally
from worker.demo.traffic import Sent
from worker.process.child_worker import ChildWorker, start_worker

LOG = Path(".sqe") / "demo-worker.log"

DRAIN_SECONDS = 60.0
"""Without any outcome, after which what is left is given up as lost."""

POLL_SECONDS = 0.02
"""Between two looks for outcomes: a fraction of an evaluation."""


@contextlib.contextmanager
def running_worker(redis_url: str, port: int, options: Sequence[str]) -> Iterator[ChildWorker]:
    """Run `sqe-hrm worker` in a process of its own, ready; it is stopped cleanly at the end.

    Args:
        redis_url: Where it takes its messages from.
        port: Port of its metrics; 0 takes a free one.
        options: More options of `sqe-hrm worker`.

    Raises:
        ChildWorkerError: The worker ended, or is not ready in time.
    """
    LOG.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "worker", "worker", "--metrics-port", str(port), *options]
    environ = {
        # The agent has few prompts: with a cache there would soon be no inference to see.
        "SQE_CACHED_PREDICTIONS": "0",
        **os.environ,
        "SQE_REDIS_URL": redis_url,
        "SQE_METRICS_HOST": "127.0.0.1",
    }
    with start_worker(command, log=LOG, environ=environ) as worker:
        yield worker.wait_until_ready()


def exchange(
    redis_url: str,
    worker: ChildWorker,
    messages: Iterator[Sent],
    tally: Tally,
    *,
    seconds: float,
    in_flight: int,
    on_change: Callable[[Tally], None],
) -> Account:
    """Send for `seconds`, with at most `in_flight` messages unanswered; then wait for the rest.

    Everything is noted in `tally`, which `on_change` sees after each look for outcomes. Ctrl-C and
    SIGTERM end the sending early.
    """
    with Client(redis_url) as client, redis.Redis.from_url(redis_url) as store:
        letters_before = entries_added(store, keys.DEAD_LETTERS)
        waiting: dict[str, Sent] = {}
        tally.started = tally.last_answer = time.monotonic()
        with _asked_to_stop() as asked:
            while True:
                sending = time.monotonic() < tally.started + seconds and not asked.is_set()
                room = in_flight - len(waiting) if sending else 0
                for sent in itertools.islice(messages, room):
                    waiting[sent.message_id] = sent
                    tally.note_sent(sent)
                    client._send_body(sent.body, sent.message_id)  # noqa: SLF001 - also malformed
                for message_id, outcome in client.poll(list(waiting)).items():
                    tally.note_outcome(waiting.pop(message_id), outcome)
                on_change(tally)
                given_up = time.monotonic() > tally.last_answer + DRAIN_SECONDS
                if not sending and (not waiting or given_up):
                    break
                worker.check()
                time.sleep(POLL_SECONDS)
        figures = worker.scrape()
        return Account(
            sent=tally.sent.total(),
            verdicts=tally.verdicts.total(),
            dead_letters=tally.rejections.total(),
            evaluations_total=int(figures.total("evaluations_total")),
            rejected_total=int(figures.total("rejected_total")),
            stream_length=entries_added(store, keys.DEAD_LETTERS) - letters_before,
            mistaken=tally.mistaken,
        )


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that is set by the first Ctrl-C or SIGTERM; a second one does what it always does.

    Set here also where the shell had Ctrl-C ignored, as it does for commands in the background.
    """
    asked = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, _frame: FrameType | None) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
