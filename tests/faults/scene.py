"""The scene of a fault: Redis, workers, an agent that keeps sending, and their ledger.

The agent sends as one should: what Redis did not accept, it sends again. Its messages are solved,
unsolved and refused, single and in batches, live and from files. Knows nothing of any fault.
"""

import contextlib
import dataclasses
import itertools
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from schemas import Rejection, SQEMessage, Verdict
from tests.faults.ledger import COUNTERS, Ledger, Row, partial_batches, remaining
from tests.support.flows import flow
from tests.support.processes import STUB, Worker, wait_for
from tests.support.stubs import message
from worker.broker.keys import BACKFILL_QUEUE, LIVE_QUEUE, QUEUES, UNACKED
from worker.broker.urls import connections
from worker.client import BrokerUnreachable, Client

SHORT = 1.0
"""The shortest visibility timeout, so that a dead worker's messages move on soon."""

COUNTED = 5.0
"""Seconds from the storing of an outcome until its worker has counted it."""

PATIENCE = 60.0
"""Seconds in which Redis accepts a message, or a message gets its outcome."""

LONGEST = 300.0
"""Seconds in which all messages have outcomes, or some are lost."""

KINDS = ("solve", "fail", "solve", "nan", "solve", "fail", "solve", "solve", "fail", "solve")
"""The outcomes of messages, in turn: solved, unsolved or refused."""

LOOKED_AT = 2000
"""Messages without an outcome that are looked at, the oldest."""

BATCH = 24
"""Messages in a batch."""

RETRY = Retry(
    ConstantBackoff(0.1), 100, supported_errors=(redis.ConnectionError, redis.ReadOnlyError)
)
"""How the ledger's own client waits for a Redis that comes back."""

LENGTHS = {
    "failures_maxbytes": 10**10,
    "failures_per_hour": 1_000_000,
    "dead_letters_maxbytes": 10**10,
}
"""Limits of the streams, so that every record is kept."""


def kind(number: int) -> str:
    """A prompt for the stub."""
    return KINDS[number % len(KINDS)]


def read(worker: Worker) -> Counter[str]:
    """Read what a worker has counted, none of which is missing."""
    page = worker.scrape()
    for queue in QUEUES:
        flow(page, queue)
    return Counter({name: int(page.total(name)) for name in COUNTERS})


@dataclass(frozen=True)
class Mark:
    """The end of a fault."""

    time: float
    """Monotonic time."""
    answered: frozenset[str]
    """Messages that had their outcomes."""


class Scene:
    """Redis, workers and an agent.

    Args:
        folder: Logs of workers, and files that their messages wait for.
        url: Redis as workers and the agent find it.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.client = Client(url)
        self.store = redis.Redis.from_pool(connections(url, retry=RETRY))
        self.ledger = Ledger()
        self.workers: list[Worker] = []
        self._past: Counter[str] = Counter()
        self._exact = True
        self._seconds: list[float] = []
        self._numbers = itertools.count()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.client.close()
        self.store.close()

    def start(
        self,
        *options: str,
        command: tuple[str, ...] = STUB,
        url: str | None = None,
        visibility_timeout: float = SHORT,
        **settings: object,
    ) -> Worker:
        """Start a worker; it takes messages once it is ready."""
        settings = {**LENGTHS, "visibility_timeout": visibility_timeout, **settings}
        start = Worker.start(command, self.folder, url or self.url, *options, **settings)
        self.workers.append(self._stack.enter_context(start))
        return self.workers[-1]

    def stop(self, worker: Worker, number: signal.Signals) -> None:
        """Read what a worker has counted, and send it a signal that ends it."""
        self._past += read(worker)
        worker.signal(number)
        self.gone(worker)

    def gone(self, worker: Worker) -> None:
        """Note that a worker ends, and that what it counted since it was read is not known."""
        self.workers.remove(worker)
        self._exact = False

    @contextlib.contextmanager
    def supervised(self, count: int) -> Iterator[None]:
        """Run `count` workers, each of which is replaced when it ends."""
        over = threading.Event()

        def supervise() -> None:
            limits = {**LENGTHS, "visibility_timeout": SHORT}
            while not over.is_set():
                with Worker.start(STUB, self.folder, self.url, **limits) as worker:
                    while worker.process.poll() is None and not over.wait(0.02):
                        pass

        self._exact = False
        with ThreadPoolExecutor(count) as pool:
            running = [pool.submit(supervise) for _ in range(count)]
            try:
                yield
            finally:
                over.set()
            for each in running:
                each.result()

    # The agent.

    def send(
        self, count: int, *, seconds: float = 0.0, prompts: Callable[[int], str] = kind
    ) -> None:
        """Send messages of all kinds: half of them in batches, half of each from files.

        Args:
            count: Number of messages.
            seconds: Time that the engine needs for each.
            prompts: Makes a prompt from a number.
        """
        # First, so that replicas that confirm a message have it, too.
        self._garbage()
        queues = itertools.cycle((LIVE_QUEUE, BACKFILL_QUEUE))
        left = count
        while left > 0:
            singles = [self._message(seconds, prompts) for _ in range(min(left, BATCH))]
            left -= len(singles)
            for each in singles:
                self.submit(each, next(queues))
            batch = [self._message(seconds, prompts) for _ in range(min(left, BATCH))]
            left -= len(batch)
            self.submit_batch(batch, next(queues))

    def submit(self, sent: SQEMessage, queue: str = LIVE_QUEUE) -> None:
        """Send a message until Redis accepts it."""
        self._until_accepted(lambda: self.client.submit(sent, queue=queue))
        self._note(sent)

    def submit_batch(self, batch: list[SQEMessage], queue: str = LIVE_QUEUE) -> None:
        """Send a batch until Redis accepts it."""
        self._until_accepted(lambda: self.client.submit_many(batch, queue=queue))
        for each in batch:
            self._note(each)

    @contextlib.contextmanager
    def traffic(self, seconds: float = 0.0, pause: float = 0.01) -> Iterator[None]:
        """Keep sending during the block, whatever happens to Redis, and then no longer."""
        over = threading.Event()

        def send() -> None:
            queues = itertools.cycle((LIVE_QUEUE, BACKFILL_QUEUE, LIVE_QUEUE))
            while not over.wait(pause):
                self.submit(self._message(seconds), next(queues))

        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(send)
            try:
                yield
            finally:
                over.set()
            sending.result()

    def _message(self, seconds: float = 0.0, prompts: Callable[[int], str] = kind) -> SQEMessage:
        prompt = prompts(next(self._numbers))
        return message(f"take {seconds:g} {prompt}" if seconds else prompt)

    def _garbage(self) -> None:
        item = f"no task {uuid.uuid4()}".encode()
        self._until_accepted(lambda: self.store.lpush(LIVE_QUEUE, item))
        self.ledger.items.add(item)

    def _note(self, sent: SQEMessage) -> None:
        self.ledger.accepted[sent.message_id] = None
        if sent.prompt.split()[-1] == "nan":
            self.ledger.refused.add(sent.message_id)

    @staticmethod
    def _until_accepted(send: Callable[[], object]) -> None:
        def accepted() -> bool:
            try:
                send()
            except (BrokerUnreachable, redis.RedisError):
                return False
            return True

        wait_for(accepted, "Redis accepts a message", PATIENCE)

    # Its workers, seen from outside.

    @property
    def in_hand(self) -> int:
        """Deliveries that are not acknowledged."""
        return int(self.store.hlen(UNACKED))

    def wait_in_hand(self, count: int = 1) -> None:
        wait_for(lambda: self.in_hand >= count, "taken")

    def fault_ended(self) -> Mark:
        """Note the time, and which messages have their outcomes."""
        return Mark(time.monotonic(), frozenset(self._outcomes(list(self.ledger.accepted))))

    def consumes_again(self, mark: Mark | None = None, worker: Worker | None = None) -> None:
        """Wait for a new outcome, and note how long it took.

        Args:
            mark: The end of the fault; now by default.
            worker: The worker that the outcome has to come from, if not from any.
        """
        end = mark or self.fault_ended()

        def has_new() -> bool:
            waiting = (each for each in list(self.ledger.accepted) if each not in end.answered)
            found = self._outcomes(list(itertools.islice(waiting, LOOKED_AT))).values()
            return any(
                worker is None or (isinstance(each, Verdict) and each.worker == worker.name)
                for each in found
            )

        wait_for(has_new, "messages are evaluated again", PATIENCE)
        self._seconds.append(time.monotonic() - end.time)

    def _outcomes(self, message_ids: list[str]) -> dict[str, Verdict | Rejection]:
        with contextlib.suppress(BrokerUnreachable):
            return self.client.poll(message_ids)
        return {}

    def drain(self) -> None:
        """Wait until each message has its outcome."""
        end = time.monotonic() + LONGEST
        while (left := remaining(self.store)) and time.monotonic() < end:
            wait_for(partial(self._has_changed, left), "a message gets its outcome", PATIENCE)
        assert not left
        # A worker that was cut off goes on with a batch that others have finished.
        wait_for(lambda: not partial_batches(self.store), "no batch is left", PATIENCE)

    def _has_changed(self, left: dict[str, int]) -> bool:
        return remaining(self.store) != left

    def close(self, repetitions: int, *, again: int | None = None) -> Row:
        """Wait until each message has its outcome, and compare everything.

        Args:
            repetitions: How often there was the fault.
            again: Number of messages that have to be answered again, if it is certain.
        """
        with contextlib.suppress(AssertionError):  # the row says what is left
            self.drain()
            # A worker counts an outcome just after it has stored it.
            wait_for(lambda: not self._exact or self._is_counted(again), "counted", COUNTED)
        row = self.ledger.close(
            self.client,
            self.store,
            self._totals(),
            exact=self._exact,
            again=again,
        )
        return dataclasses.replace(row, repetitions=repetitions, seconds=tuple(self._seconds))

    def _is_counted(self, again: int | None) -> bool:
        totals = self._totals()
        accepted = len(self.ledger.accepted) + len(self.ledger.items)
        return totals["evaluations_total"] + totals["rejected_total"] >= accepted and totals[
            "duplicates_total"
        ] >= (again or 0)

    def _totals(self) -> Counter[str]:
        return sum(map(read, self.workers), Counter(self._past))
