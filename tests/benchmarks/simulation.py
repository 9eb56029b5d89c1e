"""A hundred workers in one process: what Redis sees of them, without their processes.

Each has a worker's own transport, hand, rules of storing and care for its deliveries, and the
connections that these need. One thread takes turns with all of them where each worker has Celery's
event loop, and a few threads do what each worker's other threads do. A clock stands for each
engine. Every outcome is stored by itself; a worker stores those of the same few milliseconds
together.
"""

import contextlib
import heapq
import itertools
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import Empty
from typing import NamedTuple

import redis

from schemas import SQEMessage, parse_message
from tests.support.channels import ask, bare_channel
from tests.support.stubs import verdict, with_every_token
from worker.broker.keys import NO_NAMESPACE, UNACKED_INDEX
from worker.broker.urls import connections
from worker.delivery.envelope import Envelope
from worker.delivery.hand import Hand
from worker.delivery.outcomes import Delivery, Entry
from worker.delivery.scripts import RENEW, RESTORE, load_scripts
from worker.delivery.taken import Taken
from worker.delivery.tasks import bodies_of
from worker.delivery.transport import WAIT_SECONDS
from worker.delivery.upkeep import LONGEST_PAUSE, RESTORED_AT_ONCE, WITH_QUEUES
from worker.settings import Settings

SETTINGS = Settings()

THREADS = 8
"""Threads that store, renew and count for all workers: enough that none waits for another's reply
from Redis."""

LONGEST_WAIT = 0.01
"""Seconds after which the thread that gives turns looks whether another one called for it."""


class _Timer(NamedTuple):
    due: float
    number: int
    """Tells equal times apart."""
    worker: "SimulatedWorker"
    call: Callable[[], object]


class SimulatedWorker:
    """A worker without a process.

    Args:
        fleet: Gives it turns.
        name: The name of its attempts to store something.
        url: Redis.
        rate: Messages a second that its engine answers, one after the other.
        slots: Slots of its engine.
    """

    def __init__(
        self, fleet: "SimulatedFleet", name: str, url: str, *, rate: float, slots: int
    ) -> None:
        self.evaluated = 0
        """Announcements of messages that others took."""
        self.connection = connections(url, protocol=3).get_connection()
        self._client = redis.Redis.from_pool(connections(url))
        self._upkeep = redis.Redis.from_pool(connections(url))
        self._fleet = fleet
        self._name = name
        self._delivery = Delivery(SETTINGS, worker=name)
        self._attempts = itertools.count()
        self._seconds = 1 / rate
        self._free_at = 0.0
        self._hand = Hand(slots)
        self._channel = bare_channel(
            self.connection, self._hand, self._take, SETTINGS.max_item_bytes
        )
        self._hand.on_room = lambda: fleet.call_soon(self, self._channel.look_again)
        load_scripts(self._client)

    def begin(self, share: float) -> None:
        """Start the timers, which `share`, from 0 to 1, spreads over their times."""
        keys = NO_NAMESPACE.all_keys(WITH_QUEUES)

        def keep() -> None:
            if tags := self._hand.tags():
                RENEW(self._upkeep, (UNACKED_INDEX,), *tags)
            RESTORE(self._upkeep, keys, SETTINGS.visibility_timeout, RESTORED_AT_ONCE)

        self._repeat(WAIT_SECONDS, share, self._channel.look_again)
        beside = self._fleet.do_beside
        self._repeat(LONGEST_PAUSE, share, lambda: beside(keep))

    def turn(self) -> None:
        """Send a request, if there is room for messages and none is under way."""
        ask(self._channel)

    def read(self) -> None:
        """Read a reply or an announcement."""
        with contextlib.suppress(Empty):
            self._channel._brpop_read()

    def _repeat(self, pause: float, share: float, call: Callable[[], object]) -> None:
        due = time.monotonic() + share * pause

        def again() -> None:
            nonlocal due
            call()
            due = max(due + pause, time.monotonic())
            self._fleet.call_at(due, self, again)

        self._fleet.call_at(due, self, again)

    def _take(self, items: Sequence[Taken]) -> None:
        for taken in items:
            envelope = taken.read()
            assert isinstance(envelope, Envelope)
            bodies = bodies_of(envelope)
            self._hand.weigh(taken.tag, len(bodies))
            (body,) = bodies
            self._free_at = max(self._free_at, time.monotonic()) + self._seconds
            message = parse_message(body)

            answer = partial(self._fleet.do_beside, partial(self._answer, taken, message))
            self._fleet.call_at(self._free_at, self, answer)

    def _answer(self, taken: Taken, message: SQEMessage) -> None:
        """Store the outcome of a message, acknowledge it, and leave its room to another."""
        self._hand.evaluated(taken.tag, 1)
        made = with_every_token(verdict(message, worker=self._name), message)
        answer = self._delivery.verdict(made, message, None)
        entry = Entry(answer, made.model_dump_json(), taken.tag)
        with self._client.pipeline(transaction=False) as pipe:
            self._delivery.store(pipe, [entry], f"{self._name}/{next(self._attempts)}", self._name)
            pipe.execute()
        self._hand.remove(taken.tag)
        self.evaluated += 1


class SimulatedFleet:
    """Workers that a thread gives turns to.

    Args:
        url: Redis.
        workers: Their number.
        rate: Messages a second that each of them evaluates.
        slots: Slots of each.
    """

    def __init__(self, url: str, workers: int, *, rate: float, slots: int) -> None:
        self._timers: list[_Timer] = []
        self._numbers = itertools.count()
        self.workers = [
            SimulatedWorker(self, f"simulated-{number}", url, rate=rate, slots=slots)
            for number in range(workers)
        ]
        self._soon: deque[tuple[SimulatedWorker, Callable[[], object]]] = deque()
        self._problems: list[BaseException] = []
        self._beside = ThreadPoolExecutor(THREADS)
        self._ended = False

    def call_at(self, due: float, worker: SimulatedWorker, call: Callable[[], object]) -> None:
        """Have `call` called at `due` (monotonic seconds), and then give `worker` a turn."""
        heapq.heappush(self._timers, _Timer(due, next(self._numbers), worker, call))

    def call_soon(self, worker: SimulatedWorker, call: Callable[[], object]) -> None:
        """Do the same now, from another thread."""
        self._soon.append((worker, call))

    def do_beside(self, work: Callable[[], object]) -> None:
        """Have another thread do something that waits for Redis."""

        def note(done: Future[object]) -> None:
            if (problem := done.exception()) is not None:
                self._problems.append(problem)

        self._beside.submit(work).add_done_callback(note)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Give turns until the end of the block."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._ended = True
            thread.join()
            self._beside.shutdown()
        assert not self._problems, self._problems[0]

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, worker in enumerate(self.workers):
                sock = worker.connection._sock
                assert sock is not None
                selector.register(sock, selectors.EVENT_READ, worker)
                worker.begin(number / len(self.workers))
                worker.turn()
            while not self._ended:
                pause = min(LONGEST_WAIT, self._timers[0].due - time.monotonic())
                for key, _ in selector.select(max(0.0, pause)):
                    key.data.read()
                    key.data.turn()
                while self._soon:
                    worker, call = self._soon.popleft()
                    call()
                    worker.turn()
                now = time.monotonic()
                while self._timers[0].due <= now:
                    timer = heapq.heappop(self._timers)
                    timer.call()
                    timer.worker.turn()
