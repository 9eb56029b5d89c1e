"""Messages of the demo's agent: accepted, changed and malformed ones.

Knows texts and JSON; nothing of Redis or of what becomes of a message. Everything but the ids is
drawn from a seed, so that a run can be repeated.
"""

import json
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from hrm.data.changes import Change, ChangeKind, Replacements, change_at, places
from hrm.data.files import DEFAULT_READER, RefusedLine
from schemas import DEFAULT_MAX_MESSAGE_BYTES, SQEHRMError, SQEMessage

AGENT_ID = "demo-agent"


class DemoDataError(SQEHRMError):
    """The file of accepted messages is unusable."""


class Kind(StrEnum):
    """The kind of a message that is not an accepted one with a single change."""

    KNOWN = "known"
    """No change: the checkpoint was trained on this message."""
    MALFORMED = "malformed"
    """The message cannot be evaluated at all."""


CHANGES = (
    ChangeKind.WORD_REPLACED,
    ChangeKind.NOT_INSERTED,
    ChangeKind.NUMBER_TIMES_10,
    ChangeKind.ENDING_APPENDED,
    ChangeKind.TRUNCATED,
)
"""The changes that the agent makes to accepted completions, one in a message."""


@dataclass(frozen=True)
class Sent:
    """A message as it was sent: its JSON text, and the id under which its outcome is stored."""

    message_id: str
    kind: Kind | ChangeKind
    body: str


@dataclass(frozen=True)
class Mixture:
    """Shares of the traffic, each from 0 to 1; the rest are known messages."""

    changed: float
    malformed: float


def read_accepted(path: Path) -> list[tuple[str, str]]:
    """Read prompts and completions from JSONL. Raises `DemoDataError` for a bad or empty file."""
    accepted = []
    with path.open("rb") as file:
        for _, content in DEFAULT_READER.messages(file):
            if isinstance(content, RefusedLine):
                raise DemoDataError(f"{path}: line {content.number}: {content.detail}")
            accepted.append((content.prompt, content.completion))
    if not accepted:
        raise DemoDataError(f"{path} holds no message: give accepted prompts and completions")
    return accepted


def traffic(accepted: Sequence[tuple[str, str]], mixture: Mixture, seed: int) -> Iterator[Sent]:
    """Generate messages endlessly.

    Args:
        accepted: Prompts and completions to send as they are or changed.
        mixture: Shares of the kinds of messages.
        seed: Seed of everything but the message ids.
    """
    source = random.Random(seed)  # noqa: S311 - not for secrets
    replacements = Replacements.of(completion for _, completion in accepted)
    while True:
        prompt, completion = source.choice(accepted)
        message_id = str(uuid.uuid4())  # new in every run, so that no outcome is taken for another
        draw = source.random()
        if draw < mixture.malformed:
            body = source.choice(MALFORMED)(message_id, prompt, completion)
            yield Sent(message_id, Kind.MALFORMED, body)
            continue
        kind: Kind | ChangeKind = Kind.KNOWN
        if draw < mixture.malformed + mixture.changed:
            change = _changed(completion, replacements, source)
            kind, completion = change.kind, change.text
        message = SQEMessage.create(
            agent_id=AGENT_ID, prompt=prompt, completion=completion, message_id=message_id
        )
        yield Sent(message_id, kind, message.model_dump_json(exclude_none=True))


def _changed(completion: str, replacements: Replacements, source: random.Random) -> Change:
    """Draw a kind of `CHANGES`, and a place anywhere in `completion`, and change that."""
    drawn = (
        _change(kind, completion, replacements, source)
        for kind in source.sample(CHANGES, len(CHANGES))
    )
    # A text may have no number, but every text has an end to append to.
    return next(change for change in drawn if change is not None)


def _change(
    kind: ChangeKind, completion: str, replacements: Replacements, source: random.Random
) -> Change | None:
    found = places(kind, completion)
    if not found:
        return None
    return change_at(source.choice(found), kind, completion, replacements, source)


def _malformed(**changes: Any) -> Callable[[str, str, str], str]:  # noqa: ANN401
    """Build a function that makes a message with `changes`; `...` leaves a field out."""

    def body(message_id: str, prompt: str, completion: str) -> str:
        fields = {
            "schema_version": 1,
            "message_id": message_id,
            "agent_id": AGENT_ID,
            "prompt": prompt,
            "completion": completion,
            **changes,
        }
        return json.dumps({name: value for name, value in fields.items() if value is not ...})

    return body


MALFORMED: tuple[Callable[[str, str, str], str], ...] = (
    _malformed(agent_id=...),
    _malformed(confidence=0.9),
    _malformed(completion=""),
    _malformed(prompt=17),
    _malformed(schema_version=2),
    _malformed(category="poetry"),
    _malformed(puzzle_id=10**9),
    _malformed(prompt="half of a pair: \ud83d"),
    _malformed(completion="x" * (DEFAULT_MAX_MESSAGE_BYTES + 1)),
    lambda _id, prompt, _completion: prompt,
    lambda _id, _prompt, _completion: "[" * 10_000,
)
"""One function for each way in which a message can be malformed."""
