"""The bounds of a fleet: the cost of a message in Redis, and the load of a hundred workers.

Redis is real. So are the workers that a message's cost is measured with, except for their engine;
the hundred are simulated (`tests.benchmarks.simulation`). Redis executes commands in one thread, so
it is full at a rate of 1 divided by that thread's time for a message. Such times depend far less
than rates on what else the machine does.
"""

import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import redis

from schemas import SQEMessage
from tests.benchmarks.page import paragraphs, table
from tests.benchmarks.setting import Setting, accepted_messages
from tests.benchmarks.simulation import SimulatedFleet
from tests.support.processes import STUB, Worker, wait_for
from tests.support.servers import Server, server
from worker.broker.keys import LIVE_QUEUE, NO_NAMESPACE, UNACKED
from worker.client import Client
from worker.client.tasks import evaluate

TITLE = "Scale"

SLOTS = 4
"""Slots of each worker, which holds twice as many messages."""

LOADS = (0.02, 0.1, 0.4)
"""Shares of the engines' rate at which single messages come: most workers are idle."""

WORKERS = 2
"""Real workers, as many as a small machine has cores."""

START_SECONDS = 120.0
"""Longest time until workers have started on a busy machine."""

LOOK_SECONDS = 0.05
"""Pause between two looks whether everything is done."""


@dataclass(frozen=True)
class Counts:
    """Counts of a server since its start, or their growth."""

    seconds: float
    commands: float
    """Including those that scripts execute."""
    round_trips: float
    """Times that it read from a connection."""
    received: float
    """Bytes."""
    sent: float
    """Bytes."""
    busy: float
    """Seconds of the thread that executes commands."""

    @classmethod
    def of(cls, store: redis.Redis) -> "Counts":
        """Read the counts of a server."""
        info = store.info("everything")
        return cls(
            seconds=time.monotonic(),
            commands=info["total_commands_processed"],
            round_trips=info["total_reads_processed"],
            received=info["total_net_input_bytes"],
            sent=info["total_net_output_bytes"],
            busy=info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"],
        )

    def since(self, before: "Counts") -> "Counts":
        """The growth since `before`."""
        pairs = zip(astuple(self), astuple(before), strict=True)
        return Counts(*(now - then for now, then in pairs))


def run(setting: Setting) -> str:
    return paragraphs(_messages(setting), _fleet(setting))


# A message.


def _messages(setting: Setting) -> str:
    """Redis's cost of a message on each part of its way, and of the start of a worker."""
    count = setting.scale_messages
    texts = accepted_messages(setting.checkpoint())
    rows: list[list[str]] = []
    with _redis() as (folder, to), Client(to.url) as client:

        def add(name: str, work: Callable[[], object]) -> None:
            grown = _growth(to.store, work)
            numbers = (grown.commands, grown.round_trips, grown.received, grown.sent)
            each = zip(numbers, (1, 2, 0, 0), strict=True)
            micros = 1e6 * grown.busy / count
            rows.append(
                [
                    name,
                    *(f"{number / count:,.{digits}f}" for number, digits in each),
                    f"{micros:,.0f}",
                    f"{1e6 / micros:,.0f}",
                ]
            )

        def made() -> Iterator[SQEMessage]:
            return _made(texts, count)

        add("sent by `submit`", partial(_submit, client, made()))
        add("sent by `submit_many`", partial(_submit_many, client, made()))
        to.store.flushall()
        before, others = Counts.of(to.store), to.store.info("clients")["connected_clients"]
        with _workers(folder, to, WORKERS) as workers:
            started = Counts.of(to.store).since(before)
            for keep, kept in ((None, ""), (0, ", `keep_result=0`")):
                for send, how in ((_submit, "one by one"), (_submit_many, "in batches")):
                    with _stopped(workers) as resume:
                        send(client, made(), keep)

                        def evaluated(resume: Callable[[], None] = resume) -> int:
                            resume()
                            return _wait_until_done(to.store)

                        add(f"evaluated {how}{kept}", evaluated)
            connected = (to.store.info("clients")["connected_clients"] - others) / WORKERS
            add("sent, evaluated and awaited one by one", partial(_ask, client, made()))
            add(
                "sent, evaluated and awaited in batches",
                lambda: _exhaust(client.results(client.submit_many(made()))),
            )
    return paragraphs(
        f"Messages of {setting.checkpoints[0].name}, {count:,} in each row; {WORKERS} real workers "
        "whose engine is a stub that answers at once. Commands include those that scripts execute; "
        "a round trip is a read of Redis from a connection. The time is that of the thread of "
        "Redis that executes commands, and the last column is the rate that fills it.",
        table(
            [
                *("a message", "commands", "round trips", "bytes in", "bytes out", "µs of Redis"),
                "full at, a second",
            ],
            rows,
        ),
        f"The start of a worker takes {started.commands / WORKERS:,.0f} commands and "
        f"{1000 * started.busy / WORKERS:.0f} ms of Redis. Under load it has {connected:.1f} "
        "connections.",
    )


def _made(texts: Sequence[tuple[str, str]], count: int) -> Iterator[SQEMessage]:
    for prompt, completion in islice(cycle(texts), count):
        yield SQEMessage.create(agent_id="planner", prompt=prompt, completion=completion)


def _submit(client: Client, messages: Iterator[SQEMessage], keep: float | None = None) -> None:
    for each in messages:
        client.submit(each, keep_result=keep)


def _submit_many(client: Client, messages: Iterator[SQEMessage], keep: float | None = None) -> None:
    client.submit_many(messages, keep_result=keep)


def _ask(client: Client, messages: Iterator[SQEMessage]) -> None:
    for each in messages:
        client.result(client.submit(each))


def _exhaust(outcomes: Iterator[object]) -> None:
    for _ in outcomes:
        pass


# A fleet.


def _fleet(setting: Setting) -> str:
    """The load of many workers on Redis, while they are idle and under load."""
    workers, rate = setting.scale_workers, setting.scale_rate
    texts = accepted_messages(setting.checkpoint())
    with _redis() as (_, to):
        fleet = SimulatedFleet(to.url, workers, rate=rate, slots=SLOTS)
        with fleet.running():
            _wait_until_listening(to.store, workers)
            idle = _growth(to.store, partial(time.sleep, setting.scale_seconds))
            loads = [_load(to, texts, setting, share) for share in LOADS]
            backlog = _backlog(to, fleet, texts, setting)
    return paragraphs(
        f"{workers} simulated workers with {SLOTS} slots, whose engines answer {rate:g} messages a "
        "second each, in one process. They have the transport, the hand, the rules of storing and "
        "the care for deliveries of real ones, but store every outcome by itself. While they are "
        f"idle, for {idle.seconds:.0f} s:",
        table(
            ["commands a second a worker", "bytes a second a worker", "busy share of Redis"],
            [
                [
                    f"{idle.commands / idle.seconds / workers:.1f}",
                    f"{(idle.received + idle.sent) / idle.seconds / workers:,.0f}",
                    f"{100 * idle.busy / idle.seconds:.1f} %",
                ]
            ],
            left=0,
        ),
        "While single messages come, so few that most workers are idle. Redis tells all of "
        "these of each message, and all but one find nothing:",
        table(
            [
                *("messages a second", "commands a second", "busy share of Redis"),
            ],
            loads,
            left=0,
        ),
        "While they empty a backlog of single messages:",
        table(
            [
                *("share of the engines' rate", "µs of Redis a message"),
                *("messages of a worker: least", "median", "most"),
            ],
            [backlog],
            left=0,
        ),
    )


def _load(
    to: Server, texts: Sequence[tuple[str, str]], setting: Setting, share: float
) -> list[str]:
    """A row of the table of loads."""
    rate = share * setting.scale_workers * setting.scale_rate
    count = max(1, round(rate * setting.scale_seconds))
    with Client(to.url) as client:

        def send() -> None:
            start = time.monotonic()
            for number, each in enumerate(_made(texts, count)):
                client.submit(each)
                time.sleep(max(0.0, start + (number + 1) / rate - time.monotonic()))

        grown = _growth(to.store, send)
    _wait_until_done(to.store)
    return [
        f"{count / grown.seconds:,.1f}",
        f"{grown.commands / grown.seconds:,.0f}",
        f"{100 * grown.busy / grown.seconds:.1f} %",
    ]


def _backlog(
    to: Server, fleet: SimulatedFleet, texts: Sequence[tuple[str, str]], setting: Setting
) -> list[str]:
    """The row of the backlog's table."""
    rate = setting.scale_workers * setting.scale_rate
    count = round(2 * rate * setting.scale_seconds)
    before = [worker.evaluated for worker in fleet.workers]

    def send() -> int:
        # As fast as Redis takes them, so that the workers soon have all that they can hold.
        with to.store.pipeline(transaction=False) as pipe:
            for each in _made(texts, count):
                for command in evaluate(each, LIVE_QUEUE).commands(NO_NAMESPACE, 0):
                    pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            pipe.execute()
        return _wait_until_done(to.store)

    grown = _growth(to.store, send)
    own = [
        worker.evaluated - earlier for worker, earlier in zip(fleet.workers, before, strict=True)
    ]
    return [
        f"{count / grown.seconds / rate:.2f}",
        f"{1e6 * grown.busy / count:,.0f}",
        *(f"{each:,.0f}" for each in (min(own), statistics.median(own), max(own))),
    ]


# What is measured, and how.


def _growth(store: redis.Redis, work: Callable[[], object]) -> Counts:
    """The growth of the counts while `work` runs, without the looks whose number it returns."""
    before = Counts.of(store)
    looks = work()
    grown = Counts.of(store).since(before)
    own = 1 + (looks if isinstance(looks, int) else 0)
    return Counts(
        **{**vars(grown), "commands": grown.commands - own, "round_trips": grown.round_trips - own}
    )


def _wait_until_done(store: redis.Redis) -> int:
    """Wait until nothing waits or is in work; returns how often Redis was asked."""
    looks = 1
    while store.exists(LIVE_QUEUE, UNACKED):
        looks += 1
        time.sleep(LOOK_SECONDS)
    return looks


@contextmanager
def _redis() -> Iterator[tuple[Path, Server]]:
    with tempfile.TemporaryDirectory() as name, server(Path(name)) as started:
        yield Path(name), started


@contextmanager
def _workers(folder: Path, to: Server, workers: int) -> Iterator[list[Worker]]:
    """Run real workers, whose stub of an engine answers at once; begins when all of them listen."""
    with ExitStack() as running:
        started = [
            running.enter_context(Worker.start(STUB, folder, to.url, "--every-token"))
            for _ in range(workers)
        ]
        _wait_until_listening(to.store, workers)
        yield started


@contextmanager
def _stopped(workers: Sequence[Worker]) -> Iterator[Callable[[], None]]:
    """Keep workers from doing anything until the function that this yields is called."""

    def resume() -> None:
        for worker in workers:
            worker.signal(signal.SIGCONT)

    for worker in workers:
        worker.signal(signal.SIGSTOP)
    try:
        yield resume
    finally:
        resume()


def _wait_until_listening(store: redis.Redis, workers: int) -> None:
    """Wait until as many workers found nothing and wait for an announcement."""
    wait_for(
        lambda: store.info("clients")["tracking_clients"] == workers,
        "all workers listening",
        START_SECONDS,
    )
