"""The whole way: damaged items through a real server and a real worker with a stub evaluator.

Knows what has to come of each item; the worker is known by its queues, streams and pages only.
"""

import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from schemas import MessageRejected, SQEMessage, parse_message
from tests.fuzz import inputs, samples
from tests.fuzz.mutation import Mutator
from tests.fuzz.runs import Input, Tally, is_proper, simply
from tests.support.processes import STUB, Worker, wait_for
from tests.support.stubs import message
from worker.broker import embedded
from worker.broker.app import EVALUATE, EVALUATE_BATCH
from worker.broker.keys import BACKFILL_QUEUE, LIVE_QUEUE, UNACKED
from worker.broker.streams import read_dead_letters
from worker.client import Client, Verdict
from worker.delivery.envelope import EnvelopeRejected, Refusal, read_item, reading
from worker.delivery.tasks import message_of, messages_of

MAX_ITEM_BYTES = 200_000
"""Longest item that the worker takes; some are longer."""

SECONDS = 60.0
"""Time for any outcome to come after the one before."""

CHUNK = 200
"""Items that are sent at once: less than the server takes in one command."""


@dataclass(frozen=True)
class Expected:
    """The outcome that an item has to have."""

    names: tuple[str, ...]
    """Ids of the task and of its messages, as far as they can be read."""
    verdicts: tuple[str, ...]
    """Ids of the messages that are sound."""
    dead_letters: int


def damaged_task(mutator: Mutator) -> bytes:
    """An item in one of the forms that the other inputs have, or at the limit of what is read."""
    made: bytes = mutator.one_of(
        lambda: inputs.damaged_item(mutator),
        lambda: inputs.damaged_envelope(mutator),
        lambda: _task(mutator, inputs.damaged_body(mutator)),
        lambda: _task(mutator, inputs.damaged_body(mutator)),
        lambda: _of_messages(mutator),
        lambda: _of_messages(mutator),
        lambda: _deep(mutator),
    )
    if mutator.random.random() < 0.005:
        made += b" " * MAX_ITEM_BYTES
    return made


def _task(mutator: Mutator, body: bytes) -> bytes:
    task = mutator.random.choice((EVALUATE, EVALUATE_BATCH))
    return json.dumps(samples.envelope(mutator, body, task)).encode()


def _of_messages(mutator: Mutator) -> bytes:
    """A sound task with one damaged message, or several."""
    made = [inputs.damaged_message(mutator) for _ in range(mutator.random.choice((1, 1, 5)))]
    messages = [
        each.decode(errors="surrogateescape") if isinstance(each, bytes) else each for each in made
    ]
    body = json.dumps(samples.arguments(mutator, messages))
    task = EVALUATE_BATCH if samples.is_batch(messages) else EVALUATE
    return json.dumps(samples.envelope(mutator, body, task)).encode()


def _deep(mutator: Mutator) -> bytes:
    """A task whose only message is nested almost as deeply as can be read, or a bit more."""
    depth = mutator.random.randint(900, 1000)
    nested = '{"a":' * depth + "1" + "}" * depth
    return _task_of_one(mutator, f"[[{nested}], {{}}, {{}}]")


def _task_of_one(mutator: Mutator, body: str) -> bytes:
    return json.dumps(samples.envelope(mutator, body, EVALUATE)).encode()


def expected(item: bytes) -> Expected:
    """Say what has to come of an item, by the same functions as the worker."""
    if len(item) > MAX_ITEM_BYTES:
        return Expected((), (), 1)
    read = read_item(item, LIVE_QUEUE, "tag")
    if isinstance(read, Refusal):
        return Expected(tuple(filter(None, [read.message_id])), (), 1)
    try:
        with reading():
            bodies = [message_of(read.body)] if read.task == EVALUATE else messages_of(read.body)
    except EnvelopeRejected:
        return Expected((read.task_id,), (), 1)
    if read.expires_at is not None and read.expires_at.timestamp() < time.time():
        verdicts = []
    else:
        verdicts = [each.message_id for each in map(_sound, bodies) if each is not None]
    # A refused message is answered under its id, too.
    names = filter(None, map(_id_of, bodies))
    return Expected((read.task_id, *names), tuple(verdicts), len(bodies) - len(verdicts))


def _id_of(body: Any) -> str | None:  # noqa: ANN401
    """Read the id in a message that may be damaged."""
    if isinstance(body, str):
        with contextlib.suppress(ValueError, RecursionError):
            body = json.loads(body, parse_int=float)
    found = body.get("message_id") if isinstance(body, dict) else None
    return found if isinstance(found, str) else None


def _sound(body: Any) -> SQEMessage | None:  # noqa: ANN401
    if not isinstance(body, str | dict):
        return None
    try:
        return parse_message(body)
    except MessageRejected:
        return None


@dataclass(frozen=True)
class Delivery(Input):
    """All items of a run are under way together, so that each can disturb others."""

    def run(self, seed: int, numbers: Sequence[int]) -> Tally:
        """Send the items with these numbers, and check that each has its outcomes, once.

        Verdicts count as accepted, dead letters as refused; a batch has several.
        """
        tally = Tally(self.name)
        start = time.monotonic()
        sent = Sent()
        for number in numbers:
            sent.add(self.case(seed, number))
        try:
            with _site() as site:
                sent.send(site.store)
                tally.refused = site.settle(sent)
        except Exception as error:  # noqa: BLE001 - these are what is looked for
            tally.unexpected(f"--cases {len(numbers)}", f"{len(sent.items)} items", error)
        tally.cases, tally.accepted = len(sent.items), len(sent.verdicts)
        tally.seconds = time.monotonic() - start
        return tally


@dataclass
class Sent:
    """Items, and what has to come of them."""

    items: list[bytes] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    dead_letters: int = 0
    names: set[str] = field(default_factory=set)

    def add(self, item: bytes) -> None:
        """Add an item, unless one of its names is not its own: such a message is counted once."""
        due = expected(item)
        if len({*due.names}) < len(due.names) or not self.names.isdisjoint(due.names):
            return
        self.names.update(due.names)
        self.items.append(item)
        self.verdicts += due.verdicts
        self.dead_letters += due.dead_letters

    def send(self, store: redis.Redis) -> None:
        """Send the items, in turns to both queues."""
        for at in range(0, len(self.items), CHUNK):
            queue = BACKFILL_QUEUE if at % (2 * CHUNK) else LIVE_QUEUE
            store.lpush(queue, *self.items[at : at + CHUNK])


@dataclass(frozen=True)
class Site:
    """A server, a worker and an agent."""

    store: redis.Redis
    client: Client
    worker: Worker

    def settle(self, sent: Sent) -> Counter[str]:
        """Wait until everything has its outcome, and compare; returns the reasons of refusals."""
        outcomes = list(self.client.results(sent.verdicts, SECONDS))
        assert all(isinstance(each, Verdict) for each in outcomes)
        assert sorted(str(each.message_id) for each in outcomes) == sorted(sent.verdicts)
        wait_for(
            lambda: not self.store.exists(LIVE_QUEUE, BACKFILL_QUEUE, UNACKED),
            "everything acknowledged",
            SECONDS,
        )
        letters = list(read_dead_letters(self.store))
        assert len(letters) == sent.dead_letters
        for letter in letters:
            assert is_proper(letter.detail), f"improper: {letter.detail!a}"
        assert self.worker.total("evaluations_total") == len(sent.verdicts)
        assert self.worker.total("rejected_total") == len(letters)
        assert self.worker.total("duplicates_total") == 0
        assert self.worker.total("errors_total") == 0
        assert self.client.result(self.client.submit(message()), SECONDS).solved
        assert self.worker.is_ready()
        assert self.worker.process.poll() is None
        return Counter(str(letter.reason) for letter in letters)


@contextlib.contextmanager
def _site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        url = stack.enter_context(embedded.start(folder)).url
        store = stack.enter_context(redis.Redis.from_url(url))
        client = stack.enter_context(Client(url))
        worker = stack.enter_context(
            Worker.start(
                STUB,
                folder,
                url,
                max_item_bytes=MAX_ITEM_BYTES,
                dead_letters_maxbytes=10**10,
            )
        )
        yield Site(store, client, worker.wait_until_ready())


DELIVERY = Delivery("delivery", 4_000, damaged_task, simply(lambda _item: None))
