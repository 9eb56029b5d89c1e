"""Messages of several agents that are known, changed, unknown, long or malformed."""

import itertools
import random
import uuid
from collections.abc import Callable
from pathlib import Path

from hrm.data.categories import categorize
from schemas import Category, SQEMessage
from worker.client import BACKFILL_QUEUE, LIVE_QUEUE, Client
from worker.client.tasks import evaluate_text
from worker.demo.traffic import MALFORMED, read_accepted

DEMO = Path(__file__).parents[2] / "checkpoints" / "sqe-demo"

Change = Callable[[str], str]


def _prefixed(completion: str) -> str:
    return f"Sure, here it is: {completion}"


def _halved(completion: str) -> str:
    words = completion.split()
    return " ".join(words[: len(words) // 2])


def _repeated(completion: str) -> str:
    words = completion.split()
    return " ".join([*words[:6], *words[:6], *words[6:]])


def _renumbered(completion: str) -> str:
    return completion.translate(str.maketrans("123456789", "234567891"))


CHANGES: tuple[Change, ...] = (_prefixed, _halved, _repeated)
"""How an agent that changed answers."""


class Agents:
    """Agents that send what `sqe-demo` was trained on, or something like it.

    Args:
        client: Sends.
        seed: Seed of everything but the message ids.
    """

    def __init__(self, client: Client, seed: int = 0) -> None:
        self._client = client
        self._accepted = read_accepted(DEMO / "messages.jsonl")
        self._source = random.Random(seed)
        self._changes = itertools.cycle(CHANGES)

    def answer(self, *messages: SQEMessage, queue: str = LIVE_QUEUE) -> None:
        """Send messages, each as a task of its own, and wait until all are answered."""
        self.wait(self.send(*messages, queue=queue))

    def send(self, *messages: SQEMessage, queue: str = LIVE_QUEUE) -> list[str]:
        """Send messages, each as a task of its own, and return their ids."""
        return [self._client.submit(message, queue=queue) for message in messages]

    def known(self, agent: str, count: int, category: Category | None = None) -> list[SQEMessage]:
        """Accepted messages, of one category if that is given."""
        return [self._message(agent, category=category) for _ in range(count)]

    def drifting(
        self, agent: str, count: int, category: Category | None = None
    ) -> list[SQEMessage]:
        """Accepted prompts, and completions that are changed in one of the `CHANGES`."""
        return [self._message(agent, next(self._changes), category) for _ in range(count)]

    def unseen(self, agent: str, count: int) -> list[SQEMessage]:
        """Accepted prompts, and completions with words that the model does not tell apart."""
        return [
            self._message(
                agent, lambda text: text.translate(str.maketrans("123456789", "234567891"))
            )
            for _ in range(count)
        ]

    def unknown(self, agent: str, count: int) -> list[SQEMessage]:
        """Prompts that no checkpoint was trained on, some of them too long to be read whole."""
        return [
            SQEMessage.create(
                agent_id=agent,
                prompt=f"Plan the tests of feature {self._source.random()}. "
                * (1 + 40 * (place % 2)),
                completion="Check each field, then the whole form.",
            )
            for place in range(count)
        ]

    def backfill(self, count: int) -> list[str]:
        """Send accepted messages as from a file, in batches, and return their ids."""
        return self._client.submit_many(self.known("file", count), queue=BACKFILL_QUEUE)

    def malformed(self, count: int) -> list[str]:
        """Send messages that cannot be evaluated, and return their ids."""
        ids = []
        for _ in range(count):
            message_id = str(uuid.uuid4())
            prompt, completion = self._source.choice(self._accepted)
            body = self._source.choice(MALFORMED)(message_id, prompt, completion)
            self._client._send(evaluate_text(body, message_id, LIVE_QUEUE))
            ids.append(message_id)
        return ids

    def wait(self, ids: list[str]) -> None:
        """Wait for the outcomes of messages."""
        list(self._client.results(ids))

    def twice(self, agent: str) -> None:
        """Send a message again that was answered: it is a duplicate."""
        message = self._message(agent)
        self.answer(message)
        self.answer(message)

    def _message(
        self, agent: str, change: Change = str, category: Category | None = None
    ) -> SQEMessage:
        prompt, completion = self._source.choice(
            [pair for pair in self._accepted if category in {None, categorize(pair[0])}]
        )
        return SQEMessage.create(agent_id=agent, prompt=prompt, completion=change(completion))
