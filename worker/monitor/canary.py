"""Messages with a known answer, sent through the live queue like an agent's.

Their outcomes tell a worker that is broken from an agent that changed: what the serving checkpoint
solves, by its record or because it did so before, it has to solve again. A wrong answer to anything
else says nothing of the workers. One is under way at a time. While it has no outcome, no other is
sent, so workers that are away find one canary and not a thousand.

Workers recognise a canary by its id, which is in a set of Redis that agents cannot write to. They
count it in the lane `canary` of `evaluations_total`, and nowhere else. A monitor that is started
again goes on waiting for the canary of the one before. Knows messages and outcomes.
"""

import itertools
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import redis

from hrm.checkpoint.solved import SolvedTexts
from hrm.data.conversion import AcceptedPair
from hrm.data.files import DEFAULT_READER, RefusedLine
from hrm.data.texts import TextHashes
from schemas import MessageRejected, SQEHRMError, SQEMessage, Verdict
from worker.broker.contract import CANARY_AGENT
from worker.broker.keys import CANARIES, Namespace
from worker.client import Client, ResultTimeout
from worker.monitor.figures import CanaryOutcome

logger = logging.getLogger(__name__)

LATE_SECONDS = 30.0
"""Time for an outcome. A worker that starts on a GPU takes longer, a live message does not."""

GIVE_UP_SECONDS = 3600.0
"""Time after which the outcome of a canary is not waited for any more, and another one is sent."""

FORGOTTEN_SECONDS = 7 * 86_400
"""Age from which on the id of a canary without an outcome is not kept."""


class CanaryError(SQEHRMError):
    """The file of canaries cannot be used."""


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A message to send."""

    message: SQEMessage
    solved_by: str | None = None
    """Digest of the checkpoint that is recorded to solve it, if there is such a record."""


def read_canaries(file: Path, record: SolvedTexts | None = None) -> list[Question]:
    """Read accepted messages, or pairs of prompt and completion.

    Args:
        file: One in each line.
        record: What the checkpoint solves. Messages that it is recorded not to solve are left out.

    Raises:
        CanaryError: The file cannot be used.
    """
    canaries = []
    try:
        with file.open("rb") as source:
            for _, content in DEFAULT_READER.messages(source):
                if isinstance(content, RefusedLine):
                    raise CanaryError(f"{file}: line {content.number}: {content.detail}")
                canaries.append(_message(content))
    except OSError as error:
        raise CanaryError(f"{file}: cannot be read: {error.strerror}") from None
    if not canaries:
        raise CanaryError(f"{file} holds no message: give messages that the checkpoint solves")
    if record is None:
        return [Question(each) for each in canaries]
    return _with_record(canaries, record)


class Canary:
    """The thread that sends canaries.

    Args:
        client: Sends them, and waits for their outcomes.
        store: Keeps their ids.
        namespace: The beginning of all names.
        questions: Messages that the checkpoint solves, or may solve.
        seconds: Seconds between two.
        note: Told what became of each, and the seconds until its outcome, if it has one.
    """

    def __init__(
        self,
        client: Client,
        store: redis.Redis,
        namespace: Namespace,
        questions: Sequence[Question],
        *,
        seconds: float,
        note: Callable[[CanaryOutcome, float | None], None],
    ) -> None:
        self._client = client
        self._store = store
        self._ids = namespace.key(CANARIES)
        self._questions = itertools.cycle(questions)
        self._seconds = seconds
        self._note = note
        self._waiting: str | None = None
        self._asked: Question | None = None
        """The question that is waited for; None for one of an earlier monitor."""
        self._solved: set[tuple[Question, str]] = set()
        """Canaries that were solved, each with the digest of the checkpoint."""
        self._has_looked = False

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="canary", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            started = time.monotonic()
            self.step()
            pause.wait(max(0.0, started + self._seconds - time.monotonic()))

    def step(self) -> None:
        """Send a canary, unless one is under way, and wait for the outcome."""
        try:
            if not self._has_looked:
                self._waiting = self._of_before()
                self._has_looked = True
            if self._waiting is None:
                self._waiting = self._send()
            self._wait(self._waiting)
        except (SQEHRMError, redis.RedisError) as error:
            logger.warning("canary: %s", error)
            self._note(CanaryOutcome.UNSENT, None)

    def _of_before(self) -> str | None:
        """Find the canary that an earlier monitor was waiting for."""
        ids = [_decoded(each) for each in self._members()]
        young = [each for each in ids if time.time() - _sent_at(each) < GIVE_UP_SECONDS]
        return max(young, key=_sent_at, default=None)

    def _send(self) -> str:
        sent_at = time.time()
        self._asked = next(self._questions)
        message = self._asked.message.model_copy(
            update={
                "message_id": f"canary-{sent_at:.3f}-{uuid.uuid4().hex}",
                "agent_id": CANARY_AGENT,
                "created_at": datetime.fromtimestamp(sent_at, UTC),
            }
        )
        forgotten = [
            each
            for each in self._members()
            if _sent_at(_decoded(each)) < sent_at - FORGOTTEN_SECONDS
        ]
        if forgotten:
            self._store.srem(self._ids, *forgotten)
        self._store.sadd(self._ids, message.message_id)
        # Kept for longer than it is waited for.
        return self._client.submit(message, keep_result=2 * GIVE_UP_SECONDS)

    def _wait(self, message_id: str) -> None:
        """Wait for an outcome, and note it; without one, note that it is late."""
        try:
            verdict = self._client.result(message_id, timeout=LATE_SECONDS)
        except ResultTimeout:
            if time.time() - _sent_at(message_id) > GIVE_UP_SECONDS:
                self._waiting = self._asked = None
            self._note(CanaryOutcome.LATE, None)
            return
        except MessageRejected as rejected:
            logger.warning("canary %s: refused: %s", message_id, rejected)
            outcome = CanaryOutcome.REFUSED
        else:
            outcome = self._judge(verdict)
            if outcome is not CanaryOutcome.SOLVED:
                logger.warning(
                    "canary %s: %s by %s with checkpoint %s (%.12s)",
                    *(message_id, outcome, verdict.worker),
                    *(verdict.checkpoint, verdict.checkpoint_digest),
                )
        self._waiting = self._asked = None
        self._note(outcome, max(0.0, time.time() - _sent_at(message_id)))
        self._store.srem(self._ids, message_id)

    def _judge(self, verdict: Verdict) -> CanaryOutcome:
        """Name an outcome. Only what the checkpoint solves can be unsolved."""
        asked, digest = self._asked, verdict.checkpoint_digest
        if not verdict.known:
            return CanaryOutcome.UNKNOWN
        if verdict.solved:
            if asked is not None:
                self._solved.add((asked, digest))
            return CanaryOutcome.SOLVED
        if asked is not None and (asked.solved_by == digest or (asked, digest) in self._solved):
            return CanaryOutcome.UNSOLVED
        return CanaryOutcome.UNPROVEN

    def _members(self) -> Iterable[bytes | str]:
        members: Iterable[bytes | str] = self._store.smembers(self._ids)
        return members


def _with_record(messages: Iterable[SQEMessage], record: SolvedTexts) -> list[Question]:
    """Leave out what is recorded as unsolved, and note what is recorded as solved."""
    questions = []
    for each in messages:
        texts = TextHashes.of(each.prompt, each.completion)
        if texts not in record.unsolved:
            questions.append(Question(each, record.digest if texts in record.solved else None))
    return questions


def _message(content: SQEMessage | AcceptedPair) -> SQEMessage:
    """Make a message of a line."""
    if isinstance(content, SQEMessage):
        return content
    fields = content.model_dump(exclude={"alternative"}, exclude_none=True)
    return SQEMessage.create(agent_id=CANARY_AGENT, **fields)


def _decoded(member: bytes | str) -> str:
    return member.decode(errors="replace") if isinstance(member, bytes) else member


def _sent_at(message_id: str) -> float:
    """Read the time from a canary's id; 0 if it has none."""
    found = re.match(r"canary-([0-9]{1,12}\.[0-9]{3})-", message_id)
    return float(found[1]) if found else 0.0
