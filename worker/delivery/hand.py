"""The deliveries that this process has in hand, and the room for more of each queue, in messages.

The hand outlives channels and connections. An item leaves it when Redis has acknowledged it or put
it back, and at no other time: a lost connection changes nothing.

Knows queues, tags and numbers of messages; nothing of Redis or of what is in an item.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from worker.broker.keys import LIVE_QUEUE, QUEUES
from worker.delivery.scripts import Suspects
from worker.telemetry.flow import Flow

SUSPECTS_PAUSE = 1.0
"""Seconds after a suspect in which a busy worker takes messages as usual. To take the next one it
has to finish all it has, so a worker with many suspects would otherwise do little else."""

ROOM_PER_SLOT = 2
"""Messages of a queue to hold for each slot: one in the slot, and one that follows it."""

PACE_SECONDS = 0.25
"""Time whose work a worker may hold if that is more. An engine that answers from its cache would
otherwise wait for every request, and so would one with few slots."""

UNSTORED = 2048
"""Messages of a queue whose outcomes may be on their way to Redis, beside those for the engine.
They must not keep the engine waiting, but a Redis that stores nothing must end the taking."""

WORTH_SECONDS = 0.1
"""Time whose work is worth a request. A worker under load would otherwise send one for the few
messages that it has just finished. It is no number of messages, since a few are seconds of a slow
engine's work, which an idle worker could do."""


@dataclass(slots=True)
class _Held:
    """An item in hand."""

    queue: str
    weight: int
    """Messages that are not evaluated yet."""
    unstored: int
    """Messages that have no outcome in Redis yet."""
    messages: int
    """Messages that count as in hand: those without an outcome, at least 1 of a task."""
    is_suspect: bool


class Hand:
    """The deliveries of one process that are not acknowledged. Threads share one object.

    Each queue has room of its own, so that a batch of the backfill keeps no live message waiting.
    The length of a batch is known only when it was taken, so the room of its queue may be exceeded
    by one batch.

    Args:
        slots: Messages that the engine has in work at once.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._pace = 0.0
        """Messages that the engine finished in the last `PACE_SECONDS`."""
        self._paced = 0
        """Messages that it has finished since then."""
        self._paced_since = time.monotonic()
        self.on_room: Callable[[], object] = lambda: None
        """Called when there is room that the last look at `rooms` did not find."""
        self.on_lost: Callable[[], object] = lambda: None
        """Called when a request's reply never came."""
        self.suspects_wait = False
        """Whether suspects waited in Redis at the last request."""
        self._held: dict[str, _Held] = {}
        self._weights: Counter[str] = Counter()
        """Messages by queue that are not evaluated yet."""
        self._unstored: Counter[str] = Counter()
        """Messages by queue that have no outcome in Redis yet."""
        self._taken: Counter[str] = Counter()
        self._settled: Counter[str] = Counter()
        self._returned: Counter[str] = Counter()
        """Messages by queue, since the start."""
        self._without_room: frozenset[str] = frozenset()
        """Queues for which the last look found no room."""
        self._unheard: list[str] = []
        """Requests without a reply, the last of which may still get it."""
        self._alone = False
        self._no_suspect_before = 0.0
        self.is_closed = False
        """Whether nothing is taken any more."""
        self.is_paused = False
        """Whether nothing is taken for now."""
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def limit(self) -> int:
        """Messages of each queue to hold for the engine."""
        return max(ROOM_PER_SLOT * self._slots, int(self._pace))

    def is_pressed(self, queue: str) -> bool:
        """Whether messages of a queue are in hand that wait for a slot."""
        return self._weights[queue] > self._slots

    def close(self) -> None:
        """Leave no more room, whatever is acknowledged. May be called by a signal's handler."""
        self.is_closed = True

    def tags(self) -> list[str]:
        """The tags of all items, the oldest first."""
        with self._changed:
            return list(self._held)

    def add(self, tag: str, queue: str, weight: int, *, is_suspect: bool) -> None:
        """Note an item that was taken.

        Args:
            tag: The tag of the delivery.
            queue: The queue.
            weight: Its messages; of a batch that nobody has read yet, the most it can have.
            is_suspect: Whether it has to be alone in hand.
        """
        with self._changed:
            self._held[tag] = _Held(queue, weight, weight, 1, is_suspect)
            self._taken[queue] += 1
            self._weights[queue] += weight
            self._unstored[queue] += weight
            self._alone = self._alone or is_suspect

    def weigh(self, tag: str, weight: int, *, missing: bool = False) -> None:
        """Correct the number of an item's messages, none of which is evaluated yet.

        With `missing`, they are those without an outcome, and as many count as taken.
        """
        with self._changed:
            held = self._held.get(tag)
            if held is None:
                return
            self._lighten(held, held.weight - weight, held.unstored - weight)
            if missing:
                messages = max(1, weight)
                self._taken[held.queue] += messages - held.messages
                held.messages = messages
            calls = self._has_new_room()
        if calls:
            self.on_room()

    def evaluated(self, tag: str, count: int) -> None:
        """Note that the engine needs no room for some of an item's messages any more."""
        self._note_progress(tag, count, 0, 0)

    def stored(self, tag: str, count: int) -> None:
        """Note that some of an item's messages have their outcomes in Redis."""
        self._note_progress(tag, 0, count, count)

    def dropped(self, tag: str, count: int) -> None:
        """Note that some of an item's messages will have no outcome here."""
        self._note_progress(tag, 0, count, 0)

    def _note_progress(self, tag: str, evaluated: int, stored: int, settled: int) -> None:
        with self._changed:
            held = self._held.get(tag)
            if held is None:
                return
            self._lighten(held, evaluated, stored)
            held.messages -= settled
            self._settled[held.queue] += settled
            self._paced += evaluated
            calls = self._has_new_room()
        if calls:
            self.on_room()

    def _lighten(self, held: _Held, evaluated: int, stored: int) -> None:
        held.weight -= evaluated
        held.unstored -= stored
        self._weights[held.queue] -= evaluated
        self._unstored[held.queue] -= stored

    def remove(self, tag: str, *, returned: bool = False) -> None:
        """Forget an item that Redis has acknowledged or, if `returned`, put back."""
        with self._changed:
            held = self._held.pop(tag, None)
            if held is None:
                return
            self._lighten(held, held.weight, held.unstored)
            (self._returned if returned else self._settled)[held.queue] += held.messages
            if held.is_suspect:
                self._alone = False
                self._no_suspect_before = time.monotonic() + SUSPECTS_PAUSE
            calls = self._has_new_room()
            self._changed.notify_all()
        if calls:
            self.on_room()

    def flows(self) -> dict[str, Flow]:
        """Count the messages of each queue that were taken, and where they are now."""
        with self._changed:
            in_hand = Counter[str]()
            for held in self._held.values():
                in_hand[held.queue] += held.messages
            return {
                queue: Flow(
                    self._taken[queue],
                    self._settled[queue],
                    self._returned[queue],
                    in_hand[queue],
                )
                for queue in dict.fromkeys((*QUEUES, *self._taken))
            }

    def asked(self, unique: str) -> None:
        """Note a request whose tags contain `unique`. The one before it has no reply any more."""
        with self._changed:
            self._unheard.append(unique)
            is_lost = len(self._unheard) > 1
        if is_lost:
            self.on_lost()

    def heard(self) -> None:
        """Note that the reply to the last request came."""
        with self._changed:
            if self._unheard:
                self._unheard.pop()

    def lost(self, *, at_end: bool = False) -> list[str]:
        """Hand over the requests that took items nobody knows, since their replies never came.

        `at_end` says that the last one will not get its reply either.
        """
        with self._changed:
            count = len(self._unheard) if at_end else max(0, len(self._unheard) - 1)
            lost, self._unheard = self._unheard[:count], self._unheard[count:]
            return lost

    def rooms(self, queues: Sequence[str]) -> list[int]:
        """Compute how many messages of each queue to take now; `on_room` tells of later room."""
        with self._changed:
            rooms = [self._room(queue) for queue in queues]
            pairs = zip(queues, rooms, strict=True)
            self._without_room = frozenset(queue for queue, room in pairs if not room)
            return rooms

    def has_room(self, queues: Sequence[str]) -> bool:
        """Whether to take messages of one of the queues now."""
        return any(self.rooms(queues))

    @property
    def suspects(self) -> Suspects:
        """When the next request should take a suspect."""
        if self._held or self.is_closed or self.is_paused:
            return Suspects.NEVER
        return Suspects.FIRST if self._is_suspects_turn else Suspects.LAST

    def wait_for(self, condition: Callable[[AbstractSet[str]], bool]) -> None:
        """Wait until the tags in hand fulfil a condition; see `look`."""
        with self._changed:
            self._changed.wait_for(lambda: condition(self._held.keys()))

    def look(self) -> None:
        """Have the conditions of `wait_for` checked again; every removal does so, too."""
        with self._changed:
            self._changed.notify_all()

    @property
    def _is_suspects_turn(self) -> bool:
        return self.suspects_wait and time.monotonic() >= self._no_suspect_before

    def _room(self, queue: str) -> int:
        """Compute the room for a queue.

        A suspect is evaluated alone: nothing is taken beside it, nor before it if it is its turn.
        """
        if (
            self.is_closed
            or self.is_paused
            or self._alone
            or (self._held and self._is_suspects_turn)
        ):
            return 0
        limit = self.limit
        worth = max(1, int(self._pace * WORTH_SECONDS / PACE_SECONDS))
        if queue != LIVE_QUEUE and limit - self._weights[LIVE_QUEUE] < worth:
            return 0  # it comes with the next request for live messages, which go before it
        unstored = limit + UNSTORED - self._unstored[queue]
        room = min(limit - self._weights[queue], unstored)
        return room if room >= worth else 0

    def _has_new_room(self) -> bool:
        """Whether there is room that the last look did not find; True only once for each look."""
        now = time.monotonic()
        passed = now - self._paced_since
        if passed >= PACE_SECONDS:
            self._pace = self._paced * PACE_SECONDS / passed
            self._paced, self._paced_since = 0, now
        is_new = any(self._room(queue) for queue in self._without_room) or (
            not self._held and self.suspects_wait
        )
        if is_new:
            self._without_room = frozenset()
        return is_new
