"""Run the demo: start a worker and the monitor, send the agent's messages, collect the outcomes.

Knows the worker's process and the client. `worker.demo.traffic` makes the messages,
`worker.demo.tally` counts the outcomes, and `worker.demo.view` shows them.
"""

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeVar

import redis

from worker.broker import keys
from worker.broker.streams import entries_added
from worker.client import LIVE_QUEUE, Client
from worker.client.tasks import evaluate_text
from worker.demo.tally import Account, Tally
from worker.demo.traffic import Sent
from worker.process.child_worker import ChildWorker, start_worker

Found = TypeVar("Found")

LOGS = Path(".sqe")
"""Folder of the worker's and the monitor's output, overwritten by each demo."""

CANARY_SECONDS = "5"
"""Seconds between two messages with a known answer: a demo is shorter than the usual minute."""

SETTLE_SECONDS = 10.0
"""Longest time until all figures are those of the last message. A worker counts an outcome once
Redis has confirmed it, when the agent may have it already; the monitor reads every two seconds."""

DRAIN_SECONDS = 60.0
"""Seconds without any outcome, after which the missing ones are given up as lost."""

POLL_SECONDS = 0.02
"""Pause between two checks for outcomes: a fraction of an evaluation."""


@contextlib.contextmanager
def running_worker(redis_url: str, port: int, options: Sequence[str]) -> Iterator[ChildWorker]:
    """Run `sqe-hrm worker` in a process of its own until the end of the block; yields it ready.

    Args:
        redis_url: The worker's Redis.
        port: Port of the worker's metrics; 0 takes a free one.
        options: Further options of `sqe-hrm worker`.

    Raises:
        ChildWorkerError: The worker ended, or was not ready in time.
    """
    # The agent has few prompts, so with a cache there would soon be no inference to see.
    uncached = {"SQE_CACHED_PREDICTIONS": "0"}
    with _running("worker", redis_url, port, options, uncached) as worker:
        yield worker


@contextlib.contextmanager
def running_monitor(redis_url: str, options: Sequence[str]) -> Iterator[ChildWorker]:
    """Run `sqe-hrm monitor` in a process of its own, on a free port, as `running_worker` does."""
    canaries = {"SQE_CANARY_SECONDS": CANARY_SECONDS}
    with _running("monitor", redis_url, 0, options, canaries) as monitor:
        yield monitor


@contextlib.contextmanager
def _running(
    name: str, redis_url: str, port: int, options: Sequence[str], defaults: Mapping[str, str]
) -> Iterator[ChildWorker]:
    LOGS.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "worker", name, "--metrics-port", str(port), *options]
    environ = {
        **defaults,
        **os.environ,
        "SQE_REDIS_URL": redis_url,
        "SQE_NAMESPACE": "",
        "SQE_METRICS_HOST": "127.0.0.1",
    }
    with start_worker(command, log=LOGS / f"demo-{name}.log", environ=environ) as child:
        yield child.wait_until_ready()


def exchange(
    redis_url: str,
    worker: ChildWorker,
    monitor: ChildWorker,
    messages: Iterator[Sent],
    tally: Tally,
    *,
    seconds: float,
    in_flight: int,
    on_change: Callable[[Tally], None],
) -> Account:
    """Send messages for a time, then wait for the remaining outcomes.

    Ctrl-C and SIGTERM end the sending early.

    Args:
        redis_url: The worker's Redis.
        worker: The running worker.
        monitor: The running monitor.
        messages: An endless source of messages.
        tally: Counts the messages and their outcomes.
        seconds: Time to send for; may be infinite.
        in_flight: Largest number of messages without an outcome.
        on_change: Called with the tally after each check for outcomes.

    Returns:
        The counts of the agent, of the worker, of the monitor and of the dead-letter stream.

    Raises:
        ChildWorkerError: The worker ended.
    """
    with Client(redis_url, namespace="") as client, redis.Redis.from_url(redis_url) as store:
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
                    task = evaluate_text(sent.body, sent.message_id, LIVE_QUEUE)
                    client._send(task)  # noqa: SLF001 - also malformed
                for message_id, outcome in client.poll(list(waiting)).items():
                    tally.note_outcome(waiting.pop(message_id), outcome)
                on_change(tally)
                given_up = time.monotonic() > tally.last_answer + DRAIN_SECONDS
                if not sending and (not waiting or given_up):
                    break
                worker.check()
                time.sleep(POLL_SECONDS)
        expected = tally.verdicts.total(), tally.rejections.total()
        evaluations, rejected = _settled(partial(_of_worker, worker), expected)
        return Account(
            sent=tally.sent.total(),
            verdicts=tally.verdicts.total(),
            dead_letters=tally.rejections.total(),
            evaluations_total=evaluations,
            of_agents=_settled(partial(_of_agents, monitor), tally.verdicts.total()),
            rejected_total=rejected,
            stream_length=entries_added(store, keys.DEAD_LETTERS) - letters_before,
            mistaken=tally.mistaken,
        )


def _of_worker(worker: ChildWorker) -> tuple[int, int]:
    """Read the messages that the worker has evaluated and refused."""
    figures = worker.scrape()
    evaluated = figures.total("evaluations_total", lane="live")
    return int(evaluated), int(figures.total("rejected_total"))


def _of_agents(monitor: ChildWorker) -> int:
    """Read the evaluations of all agents."""
    return int(monitor.scrape().total("agent_evaluations_total"))


def _settled(read: Callable[[], Found], expected: Found) -> Found:
    """Read figures until they are as expected, or for `SETTLE_SECONDS`."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (found := read()) != expected and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return found


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C or SIGTERM sets; a second one has its usual effect.

    The event is set even if the shell ignores Ctrl-C, as it does for background commands.
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
