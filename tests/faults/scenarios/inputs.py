"""Messages that come twice, end their worker or meet an error, and very many of them."""

import itertools
import signal
from collections.abc import Iterator
from pathlib import Path

from schemas import SQEMessage
from tests.faults.ledger import Row
from tests.faults.scenarios.size import Size
from tests.faults.scenarios.workers import scene
from tests.faults.scene import BATCH, Scene
from tests.support.stubs import message
from worker.broker.keys import BACKFILL_QUEUE
from worker.process.shutdown import BROKEN

POISONED = 64
"""Messages in a batch with a poisonous one."""

RELAY = 6
"""Workers that are replaced as long as they end. Most of their time they wait for the visibility
timeout of one that ended."""


def repeated(folder: Path, size: Size) -> Row:
    """Each message three times: single and in a batch at once, and single after its outcome."""
    with scene(folder) as at:
        for _ in range(2):
            at.start().wait_until_ready()
        for _ in range(size.repetitions):
            sent = [message(prompt) for prompt in itertools.islice(_kinds(), size.messages)]
            for each in sent:
                at.submit(each)
            for first in range(0, len(sent), BATCH):
                at.submit_batch(sent[first : first + BATCH])
            at.drain()
            for each in sent:
                at.submit(each)
        return at.close(size.repetitions, again=2 * len(at.ledger.accepted))


def _kinds() -> Iterator[str]:
    # A refused message is counted by its sending.
    return itertools.cycle(("solve", "fail", "solve"))


def deadly(folder: Path, size: Size) -> Row:
    """A batch for each place, with a message there that ends its worker like SIGKILL."""
    return _poisoned(folder, size, "die", workers=RELAY)


def broken(folder: Path, size: Size) -> Row:
    """A batch for each place, with a message there that always meets an unexpected error."""
    return _poisoned(folder, size, "bug", workers=2)


def _poisoned(folder: Path, size: Size, prompt: str, *, workers: int) -> Row:
    with scene(folder) as at:
        for number in range(size.repetitions):
            place = number * (POISONED - 1) // (size.repetitions - 1)
            batch = [message() for _ in range(POISONED)]
            batch[place] = message(prompt)
            _poison(at, batch[place])
            at.submit_batch(batch, BACKFILL_QUEUE)
        at.send(size.messages)
        with at.supervised(workers):
            at.drain()
            return at.close(size.repetitions)


def _poison(at: Scene, sent: SQEMessage) -> None:
    at.ledger.poison.add(sent.message_id)


def failing_once(folder: Path, size: Size) -> Row:
    """Some messages, single and in batches, meet an unexpected error the first time."""
    with scene(folder) as at:
        for _ in range(2):
            at.start().wait_until_ready()
        for number in range(size.repetitions):
            at.send(size.messages)
            at.submit(message(f"bug-once {folder / f'single-{number}'}"))
            batch = [message() for _ in range(BATCH)]
            batch[number % BATCH] = message(f"bug-once {folder / f'batch-{number}'}")
            at.submit_batch(batch)
        return at.close(size.repetitions)


def failing_always(folder: Path, size: Size) -> Row:
    """Every message meets an unexpected error, until the worker after next has a sound model."""
    with scene(folder) as at:
        for number in range(size.repetitions):
            repaired = folder / f"repaired-{number}"
            for _ in range(size.messages):
                at.submit(message(f"bug-until {repaired}"))
            worker = at.start()
            assert worker.wait() == BROKEN
            at.gone(worker)
            repaired.touch()
            end = at.fault_ended()
            worker = at.start()
            at.consumes_again(end)
            at.drain()
            at.send(size.messages)
            at.drain()
            at.stop(worker, signal.SIGKILL)  # it has nothing in hand
        return at.close(size.repetitions)


def backlog(folder: Path, size: Size) -> Row:
    """Very many messages wait before the first worker starts."""
    with scene(folder) as at:
        at.send(size.messages)
        end = at.fault_ended()
        for _ in range(2):
            at.start()
        at.consumes_again(end)
        return at.close(size.repetitions)
