"""Keep one worker for each member of a fleet, until told to stop or none is left.

Knows the starts, ends and signals of workers; nothing of messages, pages or systemd. All decisions
are made by `Supervisor.step`, which looks once at every worker and never waits for one.
"""

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

from worker.fleet.members import Member
from worker.fleet.restarts import EARLY_SECONDS, MOST_EARLY_ENDS, Restarts

logger = logging.getLogger(__name__)

BEAT_SECONDS = 0.1
"""Pause between two looks at the workers."""

HUNG_SECONDS = 30.0
"""Time between two looks from which on the supervisor itself hangs: it never waits that long."""

END_SECONDS = 10.0
"""Time after the grace period until a worker that does not end is killed. One whose engine hangs
needs 4.5 s (`worker.process.shutdown`)."""

AGAIN_IN_VAIN = frozenset({1, 2})
"""Exit statuses of a worker that could not start, for a reason that each start would have: what it
was given cannot be used, its device computes wrongly, or it was called wrongly."""

KILLED = 128
"""Added to the number of the signal that ended a worker, as shells do."""

TERMINATED = KILLED + signal.SIGTERM
"""Status of a worker that was told to stop before it could take a message."""


class ChildLike(Protocol):
    """A running worker, as the supervisor sees it (`worker.fleet.child`)."""

    @property
    def url(self) -> str | None:
        """Base URL of its pages."""

    @property
    def ready_since(self) -> float | None:
        """When it was first ready."""

    @property
    def silent_seconds(self) -> float:
        """Time without an answer."""

    @property
    def not_ready_reason(self) -> str | None:
        """Why it takes no messages."""

    @property
    def last_line(self) -> str:
        """The last line of its output."""

    def poll(self) -> int | None:
        """Return its exit status, or None while it runs."""

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""

    def kill(self) -> None:
        """End it at once."""


@dataclass(frozen=True)
class State:
    """A member's worker at one moment."""

    member: Member
    url: str | None
    """Base URL of its pages; None if it serves none."""
    not_ready_reason: str | None
    restarts: int


@dataclass(frozen=True)
class End:
    """The end of a fleet."""

    status: int
    """Exit status: 0 if all workers finished what they had, else the worst one's."""
    reason: str | None = None
    """Why it ended by itself, in one line; None if it was told to stop."""


@dataclass
class _Place:
    """A member, and the worker that it has at the moment."""

    member: Member
    restarts: Restarts = field(default_factory=Restarts)
    child: ChildLike | None = None
    starts: int = 0
    start_at: float = float("-inf")
    was_ready: bool = False
    reload_wanted: bool = False
    status: int = 0
    """The exit status of its last worker."""
    ended: str = "not started yet"
    """Why it has no worker."""
    is_given_up: bool = False


class Supervisor:
    """Starts a worker for each member, and again when it ends.

    Args:
        members: At least one.
        start: Starts a member's worker.
        grace_seconds: Time that workers have to finish once they are told to stop.
        stall_seconds: Time without an answer after which a worker hangs.
        clock: Seconds of a clock that is never set back, the one of `ChildLike.ready_since`.
    """

    def __init__(
        self,
        members: Sequence[Member],
        start: Callable[[Member], ChildLike],
        *,
        grace_seconds: float,
        stall_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = [_Place(member) for member in members]
        self._start = start
        self._grace_seconds = grace_seconds
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._looked = clock()
        self._signals: list[signal.Signals] = []
        self._kill_at: float | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether the workers were told to stop."""
        return self._kill_at is not None

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal, which the next step passes on. Only the first to stop changes anything."""
        self._signals.append(signal.Signals(number))

    def run(self) -> End:
        """Keep the workers until SIGTERM or SIGINT, or until none is left."""
        while (end := self.step()) is None:
            time.sleep(BEAT_SECONDS)
        return end

    def step(self) -> End | None:
        """Look once at everything and act on it. Returns what became of the fleet, if it ended."""
        self._looked = now = self._clock()
        while self._signals:
            self._heed(self._signals.pop(0), now)
        for place in self._places:
            self._tend(place, now)
        return self._end()

    def states(self) -> list[State]:
        """Tell how each worker is, in the members' order."""
        return [_state(place) for place in self._places]

    def not_alive_reason(self) -> str | None:
        """Say why the supervisor has to be restarted; None if it looks after its workers."""
        seconds = self._clock() - self._looked
        return None if seconds < HUNG_SECONDS else f"the supervisor hangs for {seconds:.0f} s"

    def not_ready_reason(self) -> str | None:
        """Say why no message is taken; None if at least one worker takes them."""
        if self.is_stopping:
            return "shutting down"
        if any(state.not_ready_reason is None for state in self.states()):
            return None
        return "no worker is ready"

    def not_complete_reason(self) -> str | None:
        """Say why not all workers take messages; None if all do that were not given up."""
        ready = sum(state.not_ready_reason is None for state in self.states())
        waited_for = sum(not place.is_given_up for place in self._places)
        if self.not_ready_reason() is None and ready >= waited_for:
            return None
        return self.not_ready_reason() or f"{ready} of {len(self._places)} workers are ready"

    def _heed(self, number: signal.Signals, now: float) -> None:
        if number is signal.SIGHUP:
            logger.info("received SIGHUP: passing it on")
            # To a worker that starts it would be fatal, or be lost.
            for place in self._places:
                place.reload_wanted = True
        elif not self.is_stopping:
            logger.info("received %s: stopping the workers", number.name)
            self._stop(now)

    def _stop(self, now: float) -> None:
        self._kill_at = now + self._grace_seconds + END_SECONDS
        for place in self._places:
            if place.child is not None:
                place.child.send_signal(signal.SIGTERM)

    def _tend(self, place: _Place, now: float) -> None:
        child = place.child
        if child is None:
            if not (self.is_stopping or place.is_given_up) and now >= place.start_at:
                self._start_child(place, now)
            return
        status = child.poll()
        if status is not None:
            place.child = None
            self._note_end(place, child, status, now)
        elif self._kill_at is not None:
            if now >= self._kill_at:
                logger.error("%s does not end: killing it", place.member.name)
                child.kill()
        elif child.silent_seconds >= self._stall_seconds:
            logger.error("%s does not answer for %g s", place.member.name, child.silent_seconds)
            child.kill()
        elif place.reload_wanted and child.ready_since is not None:
            place.reload_wanted = False
            child.send_signal(signal.SIGHUP)

    def _start_child(self, place: _Place, now: float) -> None:
        place.reload_wanted = False  # it reads what a reload would
        place.starts += 1
        try:
            place.child = self._start(place.member)
        except OSError as error:  # no memory, or too many processes: for now, perhaps
            place.status, place.ended = os.EX_OSERR, f"could not be started: {error.strerror}"
            self._plan(place, 0.0, now)

    def _note_end(self, place: _Place, child: ChildLike, status: int, now: float) -> None:
        since = child.ready_since
        place.was_ready |= since is not None
        place.status = status
        place.ended = f"{_how(status)}, last said: {child.last_line or 'nothing'}"
        if self.is_stopping:
            if status == TERMINATED and since is None:
                place.status = 0
            elif status:
                logger.error("%s %s", place.member.name, place.ended)
            return
        if status in AGAIN_IN_VAIN and not place.was_ready:
            # The others go on: their devices, for example, may be sound.
            self._give_up(place, f"cannot start: {child.last_line}")
            return
        self._plan(place, 0.0 if since is None else now - since, now)

    def _plan(self, place: _Place, ready_seconds: float, now: float) -> None:
        """Decide when the place gets its next worker."""
        pause = place.restarts.ended(ready_seconds)
        if pause is None:
            self._give_up(
                place,
                f"{MOST_EARLY_ENDS} ends in a row before it was ready for {EARLY_SECONDS:g} s; "
                f"it last {place.ended}",
            )
            return
        place.start_at = now + pause
        logger.warning("%s %s; starting it again in %g s", place.member.name, place.ended, pause)

    def _give_up(self, place: _Place, reason: str) -> None:
        place.is_given_up, place.ended = True, f"given up: {reason}"
        logger.error("%s: %s", place.member.name, place.ended)

    def _end(self) -> End | None:
        if any(place.child is not None for place in self._places):
            return None
        status = max(place.status for place in self._places)
        if self.is_stopping:
            return End(status)
        if all(place.is_given_up for place in self._places):
            first = self._places[0]
            return End(status, f"no worker is left: {first.member.name}: {first.ended}")
        return None


def _how(status: int) -> str:
    """Word an exit status."""
    if status > KILLED:
        return f"was killed by signal {status - KILLED}"
    return f"ended with status {status}"


def _state(place: _Place) -> State:
    child, restarts = place.child, max(0, place.starts - 1)
    if child is None:
        return State(place.member, None, place.ended, restarts)
    return State(place.member, child.url, child.not_ready_reason, restarts)
