"""Outcomes as they lie in Redis, and which of them a waiting call still needs.

Knows ids, times and the form of an outcome; connects to nothing.
"""

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from schemas import MessageRejected, Rejection, Verdict
from worker.client.errors import ResultTimeout, UnreadableOutcome

WINDOW = 10_000
"""Outcomes to wait for at a time; bounds the memory for any number of ids."""

ASKED_AT_ONCE = 500
"""Outcomes to fetch with one MGET: about half a megabyte."""

LOOK_SECONDS = 5.0
"""Seconds without an announcement after which missing outcomes are asked for all the same: for
announcements that were lost, and seldom enough that 1,000 waiting agents send 200 commands a
second together."""

Outcome = Verdict | Rejection

_MAX_SHOWN = 128
"""Characters of a message id in an error: as many as one may have."""


class Waiting:
    """One waiting call: repeats `more`, `seconds`, `wanted` and `arrived` until nothing is left.

    Args:
        message_ids: Any number of ids; one that comes twice has its outcome twice.
        timeout: Longest time in seconds without any outcome.
        key: Names the key of an outcome, which is its channel, too.
    """

    def __init__(
        self, message_ids: Iterable[str], timeout: float, key: Callable[[str], str]
    ) -> None:
        self._source = iter(message_ids)
        self._timeout = timeout
        self._key = key
        self._missing: Counter[str] = Counter()
        self._last = time.monotonic()
        self._left = timeout

    def __bool__(self) -> bool:
        return bool(self._missing)

    def more(self) -> set[str]:
        """Fill the window with further ids, and return their channels."""
        ids = list(itertools.islice(self._source, WINDOW - len(self._missing)))
        self._missing.update(ids)
        return set(map(self._key, ids))

    def seconds(self) -> float:
        """Longest time to wait for an announcement now."""
        self._left = max(0.0, self._last + self._timeout - time.monotonic())
        return min(self._left, LOOK_SECONDS)

    def wanted(self, announced: Collection[str]) -> list[str]:
        """Ids to ask for after these channels were announced; after none, all that are missing."""
        named = {each.removeprefix(self._key("")) for each in announced}
        return [each for each in named or self._missing if each in self._missing]

    def arrived(self, found: Mapping[str, Outcome]) -> list[tuple[str, Outcome]]:
        """Take note of what was found. Raises `ResultTimeout` if nothing came in time."""
        if found:
            self._last = time.monotonic()
        elif self._left == 0:
            raise ResultTimeout(
                f"no outcome for {len(self._missing)} messages (such as "
                f"{next(iter(self._missing))}) within {self._timeout:g} s: they wait for other "
                "messages, or no worker is running"
            )
        return [
            (message_id, outcome)
            for message_id, outcome in found.items()
            for _ in range(self._missing.pop(message_id))
        ]


def asked_at_once(message_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut a list of ids into pieces for one MGET each."""
    for start in range(0, len(message_ids), ASKED_AT_ONCE):
        yield message_ids[start : start + ASKED_AT_ONCE]


def parse_all(
    message_ids: Sequence[str], stored: Sequence[bytes | str | None]
) -> dict[str, Outcome]:
    """Parse what is stored under these ids; ids without an outcome are absent.

    Raises `UnreadableOutcome`.
    """
    return {
        message_id: _parse(each, message_id)
        for message_id, each in zip(message_ids, stored, strict=True)
        if each is not None
    }


def verdict_of(outcome: Outcome) -> Verdict:
    """Return a verdict; raises `MessageRejected` for a rejection."""
    if isinstance(outcome, Rejection):
        raise MessageRejected(outcome.reason, outcome.detail)
    return outcome


def _parse(stored: bytes | str, message_id: str) -> Outcome:
    try:
        outcome = json.loads(stored)["result"]
        if "reason" in outcome:
            # Beside the rejection, there is what Celery needs to raise an error.
            fields = {name: outcome[name] for name in Rejection.model_fields}
            return Rejection.model_validate(fields)
        return Verdict.model_validate_json(json.dumps(outcome))
    # A key in Redis may hold anything, and JSON that is no outcome has many ways to fail.
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UnreadableOutcome(
            f"what Redis holds for {message_id[:_MAX_SHOWN]!a} is no outcome of this version: "
            "install the client of the workers' version, and let no other program write its key"
        ) from None
