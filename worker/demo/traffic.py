"""What the demo's agent sends: accepted messages, changed ones, malformed ones.

Knows texts and JSON; nothing of Redis or of what becomes of a message. All but the ids is drawn
from a seed, so that a run can be repeated.
"""

import json
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from hrm.data.files import DEFAULT_READER, RefusedLine
from schemas import DEFAULT_MAX_MESSAGE_BYTES, MAX_SEQUENCE_LENGTH, SQEHRMError, SQEMessage

AGENT_ID = "demo-agent"

WORDS_SEEN = MAX_SEQUENCE_LENGTH - 2
"""A change beyond these words would be cut away by the conversion."""

NEW_WORDS = ("quorum", "latch", "orbit", "velvet", "harbour", "matrix", "lantern", "copper")
"""Inserted, or put in the place of others; none contains a vocabulary entry."""


class DemoDataError(SQEHRMError):
    """The file of accepted messages cannot be used."""


class Kind(StrEnum):
    """What the agent did to an accepted message."""

    KNOWN = "known"
    """Nothing: it is as the checkpoint was trained on it."""
    # Words of the completion were:
    INSERTED = "inserted"
    DROPPED = "dropped"
    REPLACED = "replaced"
    MALFORMED = "malformed"
    """It cannot be evaluated at all."""


CHANGES = (Kind.INSERTED, Kind.DROPPED, Kind.REPLACED)


@dataclass(frozen=True)
class Sent:
    """One message on its way: the id its outcome is found by, and its JSON text."""

    message_id: str
    kind: Kind
    body: str


@dataclass(frozen=True)
class Mixture:
    """Shares of the traffic, each 0 to 1; the rest is known messages."""

    changed: float
    malformed: float
    words: float
    """Share of a changed message's words that are changed; always at least one."""


def read_accepted(path: Path) -> list[tuple[str, str]]:
    """Prompts and completions of a JSONL file. Raises `DemoDataError` for a bad or empty one."""
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
    """Messages without end."""
    source = random.Random(seed)  # noqa: S311 - not for secrets
    while True:
        prompt, completion = source.choice(accepted)
        message_id = str(uuid.uuid4())  # new in every run, so that no outcome is taken for another
        draw = source.random()
        if draw < mixture.malformed:
            body = source.choice(MALFORMED)(message_id, prompt, completion)
            yield Sent(message_id, Kind.MALFORMED, body)
            continue
        kind = Kind.KNOWN
        if draw < mixture.malformed + mixture.changed:
            kind = source.choice(CHANGES)
            completion = change(completion, kind, mixture.words, source)
        message = SQEMessage.create(
            agent_id=AGENT_ID, prompt=prompt, completion=completion, message_id=message_id
        )
        yield Sent(message_id, kind, message.model_dump_json(exclude_none=True))


def change(completion: str, kind: Kind, share: float, source: random.Random) -> str:
    """`completion` with a share of its words inserted, dropped or replaced, at least one."""
    words = completion.split()
    seen = min(len(words), WORDS_SEEN)
    count = max(1, round(share * seen))
    # From the back, so that an earlier change does not move a later one's place.
    for place in sorted(source.sample(range(seen), min(count, seen)), reverse=True):
        if kind is Kind.INSERTED:
            words.insert(place, source.choice(NEW_WORDS))
        elif kind is Kind.REPLACED:
            words[place] = source.choice(NEW_WORDS)
        elif len(words) > 1:
            del words[place]
    return " ".join(words)


def _malformed(**changes: Any) -> Callable[[str, str, str], str]:  # noqa: ANN401
    """A message with `changes`; a field that is changed to `...` is left out."""

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
"""One for each way in which a message can be wrong."""
