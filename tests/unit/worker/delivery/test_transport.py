"""A worker that is called in vain, because others took the message, rests before it listens."""

import random
from collections import deque
from collections.abc import Callable
from queue import Empty
from types import SimpleNamespace
from typing import Any

import pytest

from worker.broker.keys import LIVE_QUEUE, NO_NAMESPACE
from worker.delivery.hand import Hand
from worker.delivery.transport import LONGEST_REST_SECONDS, REST_SECONDS, Channel

CALL = [b"invalidate", [b"sqe.evaluate"]]
NOTHING = [[], 0]
ITEM = [[[b"item", b"sqe.evaluate/request-0", None, None, b""]], 0]


class Redis:
    """A connection whose replies the test gives."""

    def __init__(self) -> None:
        self.replies: deque[Any] = deque()
        self.sent: list[tuple[str, ...]] = []

    def pack_commands(self, commands: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        return commands

    def send_packed_command(self, commands: list[tuple[str, ...]]) -> None:
        self.sent = commands

    def read_response(self, **_: object) -> Any:  # noqa: ANN401 - any reply
        return self.replies.popleft()

    def can_read(self) -> bool:
        return bool(self.replies)


class Worker:
    """The channel of a worker, whose event loop is the test."""

    def __init__(self) -> None:
        self.redis = Redis()
        self.rests: list[float] = []
        self._end_rest: Callable[[], object] | None = None
        channel = Channel.__new__(Channel)
        queues = SimpleNamespace(consume=lambda _: [LIVE_QUEUE])
        vars(channel).update(
            client=SimpleNamespace(connection=self.redis),
            _active_queues=[LIVE_QUEUE],
            active_fanout_queues=set(),
            _queue_cycle=queues,
            _flush_brpop_reauth=lambda: None,
            namespace=NO_NAMESPACE,
            hand=Hand(slots=4),
            on_reply=lambda: None,
            on_taken=lambda _: None,
            max_item_bytes=1000,
            call_later=self._rest,
        )
        self.channel = channel

    def _rest(self, seconds: float, end: Callable[[], object]) -> None:
        self.rests.append(seconds)
        self._end_rest = end

    def end_rest(self) -> None:
        assert self._end_rest is not None
        self._end_rest()

    @property
    def is_listening(self) -> bool:
        """Whether the last request asked for announcements."""
        return self.redis.sent[0] == ("CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP")

    def request(self, *replies: object) -> None:
        """Send the next request, and read the replies."""
        assert not self.channel._in_poll
        self.channel._brpop_start()
        self.read(*[b"OK"] * (len(self.redis.sent) - 1), *replies)

    def read(self, *replies: object) -> None:
        self.redis.replies.extend(replies)
        try:
            self.channel._brpop_read()
        except Empty:
            assert not self.redis.replies

    def listen(self) -> None:
        """Find nothing until Redis is to announce something."""
        while not self.channel._in_poll:
            self.request(NOTHING)
        assert self.is_listening


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker that listens, and whose rests have their mean length."""
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)
    worker = Worker()
    worker.listen()
    return worker


def test_each_call_in_vain_is_followed_by_a_longer_rest(worker: Worker) -> None:
    for calls in range(1, 120):
        worker.read(CALL)
        worker.request(NOTHING)
        assert not worker.is_listening
        assert worker.rests[-1] == min(calls * REST_SECONDS, LONGEST_REST_SECONDS)
        assert worker.channel._in_poll, "nothing is requested meanwhile"
        worker.end_rest()
        worker.request(NOTHING)
        assert worker.is_listening
    assert worker.rests[-1] == LONGEST_REST_SECONDS
    assert len(worker.rests) == 119


def test_a_message_that_was_taken_ends_the_row(worker: Worker) -> None:
    for _ in range(5):
        worker.read(CALL)
        worker.request(NOTHING)
        worker.end_rest()
        worker.listen()
    worker.read(CALL)
    worker.request(ITEM)
    worker.listen()
    worker.read(CALL)
    worker.request(NOTHING)
    assert worker.rests[4:] == [5 * REST_SECONDS, REST_SECONDS]


def test_a_worker_that_always_finds_something_never_rests(worker: Worker) -> None:
    for _ in range(3):
        worker.read(CALL)
        worker.request(ITEM)
        worker.listen()
    assert not worker.rests


def test_looking_without_a_call_is_no_reason_to_rest(worker: Worker) -> None:
    for _ in range(3):
        worker.channel.look_again()
        worker.listen()
    assert not worker.rests
