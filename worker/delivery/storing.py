"""Two threads that send to Redis whatever is ready, in one pipeline after the other.

While pipelines are under way, the steps of the next one gather; the caller may have steps gather
for a while in any case. So a lone outcome is sent at once, and under load one round trip and one
script serve many. What Redis refuses is tried again by itself and holds up nothing else; if Redis
is not there, all wait.

Knows steps, time and Redis's errors; nothing of what a step stores.
"""

import heapq
import itertools
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import redis
from redis.client import Pipeline
from redis.exceptions import NoScriptError, ResponseError

from worker.broker.contract import WAIT_SECONDS
from worker.delivery.agents import Counted
from worker.delivery.outcomes import Entry
from worker.delivery.scripts import load_scripts
from worker.delivery.trouble import Trouble
from worker.delivery.vital import Vital

FIRST_PAUSE = 0.1
"""Seconds until the second attempt; a Redis that restarts is often back by then."""

LONGEST_PAUSE = 2.0
"""Longest pause in seconds between attempts; short compared with a real outage."""

GATHER_SECONDS = 0.05
"""Longest time for which an outcome waits to be stored together with others. A killed worker loses
no more than the outcomes of this time."""

MOST_STEPS = 128
"""Most steps of a pipeline: two or three milliseconds of Redis, which serves nobody else while it
runs the script that stores their answers."""

MOST_GATHERED = 32
"""Most gathered steps beside urgent ones. A message of the backlog must not make a live one wait,
and live ones must not make the backlog wait for ever."""


THREADS = 2
"""Pipelines under way at once: one is built while Redis works on the other."""


@dataclass(eq=False)
class Step:
    """Commands that Redis accepts together, or that are sent again.

    Args:
        send: Adds the commands to a pipeline.
        accepted: Called with their replies.
        aborted: Called instead if Redis did not accept them and the worker stops.
        failed: Called if sending or accepting them raised an unexpected error.
    """

    send: Callable[[Pipeline], object]
    accepted: Callable[[list[Any]], object]
    aborted: Callable[[], object]
    failed: Callable[[Exception], object]
    pause: float = field(default=FIRST_PAUSE, init=False)
    """Seconds until the next attempt, once one has failed."""
    refused: dict["Sent", redis.RedisError] = field(default_factory=dict)
    """Answers of an accepted step that Redis refused, each with the error."""


@dataclass(eq=False)
class Storable:
    """An answer that one script stores together with the others of its pipeline.

    Args:
        entry: The answer.
        accepted: Called with how it counts.
        aborted: As in a step.
        failed: As in a step.
    """

    entry: Entry
    accepted: Callable[[Counted], object]
    aborted: Callable[[], object]
    failed: Callable[[Exception], object]
    pause: float = field(default=FIRST_PAUSE, init=False)
    """As in a step."""
    is_alone: bool = field(default=False, init=False)
    """Whether no other answer may suffer from it."""


_COUNTED = tuple(Counted)
"""By number: looking one up takes a tenth of the time of making one."""

Sent = Step | Storable

Make = Callable[[], Sent | None]
"""Builds something to send, or finds that there is nothing. Runs in a storing thread."""

Store = Callable[[Pipeline, Sequence[Entry], str, str], object]
"""Adds the commands that store answers to a pipeline; see `worker.delivery.outcomes`."""


class Storing:
    """The threads that send steps to Redis.

    Args:
        client: The workers' Redis.
        store: Adds the commands that store answers.
        replicas: How many replicas have to confirm a pipeline.
        on_error: Called for each attempt that Redis did not accept.
    """

    def __init__(
        self, client: redis.Redis, store: Store, *, replicas: int, on_error: Callable[[], None]
    ) -> None:
        self.trouble = Trouble("store outcomes")
        self.after_round: Callable[[], object] = lambda: None
        """Called in each storing thread after the steps of a pipeline were accepted or not."""
        self.on_request: Callable[[float], object] = lambda _: None
        """Called with the seconds of each pipeline."""
        self._client = client
        self._store = store
        self._replicas = replicas
        self._on_error = on_error
        self._urgent: deque[Make] = deque()
        self._gathered: deque[Make] = deque()
        self._gather_until = 0.0
        self._names: list[str] = []
        """Names of attempts that have ended, for new ones."""
        self._again: list[tuple[float, int, Sent]] = []
        """Steps that Redis did not accept, by the time of their next attempt."""
        self._unique = uuid.uuid4().hex
        self._numbers = itertools.count()
        self._giving_up = False
        self._ended = False
        self._changed = threading.Condition()
        self._threads = [Vital(self._run, f"storing-{number}") for number in range(THREADS)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after everything that was given so far has been accepted or aborted."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def give_up(self) -> None:
        """Stop trying again: abort every step that Redis does not accept at once."""
        with self._changed:
            self._giving_up = True
            self._changed.notify_all()

    def put(self, *makes: Make, gather: bool = False) -> None:
        """Have steps built and sent: soon, or with `gather` after others have gathered."""
        with self._changed:
            if not gather:
                self._urgent.extend(makes)
                self._changed.notify()
                return
            is_first = not self._gathered
            if is_first:
                self._gather_until = time.monotonic() + GATHER_SECONDS
            self._gathered.extend(makes)
            if is_first or len(self._gathered) >= MOST_STEPS:
                self._changed.notify()

    def flush(self) -> None:
        """Send what has gathered, since nothing more will come soon."""
        with self._changed:
            if self._gathered:
                self._gather_until = 0.0
                self._changed.notify()

    def _run(self) -> None:
        while True:
            steps = self._next()
            if steps is None:
                return
            if steps:
                self._attempt(steps)
            self.after_round()

    def _next(self) -> list[Step] | None:
        """Wait for something to send, and build it; None at the end."""
        with self._changed:
            while True:
                now = time.monotonic()
                again = self._due(now)
                is_gathered = bool(self._gathered) and (
                    len(self._gathered) >= MOST_STEPS or now >= self._gather_until or self._ended
                )
                if again or self._urgent or is_gathered:
                    break
                if self._ended and not self._again:
                    return None
                times = [each[0] for each in self._again[:1]]
                if self._gathered:
                    times.append(self._gather_until)
                self._changed.wait(max(0.0, min(times) - now) if times else None)
            urgent = [self._urgent.popleft() for _ in range(min(MOST_STEPS, len(self._urgent)))]
            most = (MOST_GATHERED if urgent else MOST_STEPS) if is_gathered else 0
            gathered = [self._gathered.popleft() for _ in range(min(most, len(self._gathered)))]
        sent = again + self._build(urgent)
        while gathered:
            if self._urgent and sent:
                break  # something came that must not wait until all of these are built
            sent += self._build([gathered.pop(0)])
        with self._changed:
            self._gathered.extendleft(reversed(gathered))
        return self._joined(sent)

    def _due(self, now: float) -> list[Sent]:
        due = []
        while self._again and (self._again[0][0] <= now or self._giving_up):
            due.append(heapq.heappop(self._again)[2])
        return due

    def _build(self, makes: list[Make]) -> list[Sent]:
        return [sent for sent in (make() for make in makes) if sent is not None]

    def _joined(self, sent: list[Sent]) -> list[Step]:
        """Make one step of all answers; those that are alone have a step each."""
        steps = [each for each in sent if isinstance(each, Step)]
        answers = [each for each in sent if isinstance(each, Storable)]
        together = [each for each in answers if not each.is_alone]
        if together:
            steps.append(self._storing_step(together))
        steps += [self._storing_step([each]) for each in answers if each.is_alone]
        return steps

    def _storing_step(self, answers: list[Storable]) -> Step:
        """Build the step that stores answers. After a lost reply, it is the same attempt again."""
        token = f"{self._unique}/{next(self._numbers)}"
        with self._changed:
            name = self._names.pop() if self._names else token
        entries = [answer.entry for answer in answers]
        # Not the step itself, which would then keep itself and all answers in memory.
        refused: dict[Sent, redis.RedisError] = {}
        return Step(
            lambda pipe: self._store(pipe, entries, token, name),
            lambda replies: self._accept(refused, name, answers, replies[0]),
            lambda: self._abort(name, answers),
            lambda problem: self._divide(name, answers, problem),
            refused=refused,
        )

    def _accept(
        self,
        refused: dict[Sent, redis.RedisError],
        name: str,
        answers: list[Storable],
        replies: list[int | bytes],
    ) -> None:
        """Tell answers that they are stored; note in `refused` those that Redis refused."""
        self._end(name)
        for answer, reply in zip(answers, replies, strict=True):
            if isinstance(reply, bytes):
                refused[answer] = ResponseError(reply.decode(errors="replace"))
                continue
            self.trouble.passed(answer)
            try:
                answer.accepted(_COUNTED[reply])
            except Exception as problem:  # noqa: BLE001 - it must not end the thread
                answer.failed(problem)

    def _abort(self, name: str, answers: list[Storable]) -> None:
        self._end(name)
        for answer in answers:
            answer.aborted()

    def _divide(self, name: str, answers: list[Storable], problem: Exception) -> None:
        """Find out which of several answers has a problem: send each alone."""
        self._end(name)
        if len(answers) == 1:
            answers[0].failed(problem)
            return
        for answer in answers:
            answer.is_alone = True
            self.put(partial(_itself, answer))

    def _end(self, name: str) -> None:
        """Give the name of an attempt that has ended to another."""
        with self._changed:
            self._names.append(name)

    def _attempt(self, steps: list[Step]) -> None:
        """Send the steps; those that Redis does not accept are sent again later."""
        try:
            failed = self._send(steps)
        except redis.RedisError as down:
            failed = dict.fromkeys(steps, down)
        if not failed:
            return
        self._on_error()
        # The idle ones may lead to the same server, which a failover made a replica.
        self._client.connection_pool.disconnect(inuse_connections=False)
        for step, error in failed.items():
            self.trouble.failed(error, step)
            if self._giving_up:
                self.trouble.passed(step)
                step.aborted()
            else:
                entry = (time.monotonic() + step.pause, next(self._numbers), step)
                with self._changed:
                    heapq.heappush(self._again, entry)
                step.pause = min(2 * step.pause, LONGEST_PAUSE)

    def _send(self, steps: list[Step]) -> dict[Sent, redis.RedisError]:
        """Send the steps in one round trip; returns what Redis refused, with its error."""
        answered = self._replies(steps)
        unknown = [step for step, replies in answered if _is_error(replies, NoScriptError)]
        if unknown:  # a Redis that has just started
            load_scripts(self._client)
            answered = [each for each in answered if each[0] not in unknown]
            answered += self._replies(unknown)
        failed: dict[Sent, redis.RedisError] = {}
        for step, replies in answered:
            if _is_error(replies, redis.RedisError):
                failed[step] = next(each for each in replies if isinstance(each, redis.RedisError))
                continue
            self.trouble.passed(step)
            try:
                step.accepted(replies)
            except Exception as problem:  # noqa: BLE001 - it must not end the thread
                step.failed(problem)
            failed.update(step.refused)
        return failed

    def _replies(self, steps: list[Step]) -> list[tuple[Step, list[Any]]]:
        """Send the steps, and make sure that enough replicas have what they wrote."""
        ends: list[tuple[Step, int]] = []
        with self._client.pipeline(transaction=False) as pipe:
            for step in steps:
                try:
                    step.send(pipe)
                except Exception as problem:  # noqa: BLE001 - it must not end the thread
                    step.failed(problem)
                else:
                    ends.append((step, len(pipe)))
            if self._replicas:
                pipe.wait(self._replicas, int(WAIT_SECONDS * 1000))
            sent = time.monotonic()
            try:
                replies = pipe.execute(raise_on_error=False)
            finally:
                self.on_request(time.monotonic() - sent)
        if self._replicas:
            confirmed = replies.pop()
            if isinstance(confirmed, redis.RedisError):
                raise confirmed
            if confirmed < self._replicas:
                raise ResponseError(
                    f"NOREPLICAS {confirmed} of {self._replicas} replicas have an outcome"
                )
        answered, start = [], 0
        for step, end in ends:
            answered.append((step, replies[start:end]))
            start = end
        return answered


def _itself(answer: Storable) -> Storable:
    return answer


def _is_error(replies: list[Any], kind: type[redis.RedisError]) -> bool:
    return any([isinstance(reply, kind) for reply in replies])  # noqa: C419 - mostly one reply: no generator
