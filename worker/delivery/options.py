"""Celery's options of a task: refused with a reason, honoured, or without effect.

An option that changes what happens before or after the task is refused, because a worker that
ignored it would break a promise of the sender's library. Knows headers and the third part of a
body; nothing of messages.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from schemas import MessageRejected, RejectionReason

ETA = "'eta' or 'countdown': send the task when it is due"

EMBEDDED = {
    "callbacks": "'link': wait for the outcome, then send the next task",
    "errbacks": "'link_error': wait for the outcome, which is FAILURE with the reason",
    "chain": "'chain': wait for the outcome, then send the next task",
    "chord": "'chord': send a group without a callback, and wait for its outcomes",
}
"""The options in the third part of a body, each as its sender calls it, with the fix."""

EARLIEST = datetime(2001, 9, 9, tzinfo=UTC)
"""Earliest time that a number in `expires` may mean. A smaller number (10^9 s) is a duration."""


def check_headers(headers: Mapping[str, Any]) -> None:
    """Refuse a task with a header that cannot be honoured. Raises `MessageRejected`."""
    if headers.get("eta"):
        raise _unsupported(ETA)


def check_embedded(options: Mapping[Any, Any]) -> None:
    """Refuse a task with other tasks in the third part of its body. Raises `MessageRejected`."""
    for name, fix in EMBEDDED.items():
        if options.get(name):
            raise _unsupported(fix)


def expires_at(headers: Mapping[str, Any]) -> datetime | None:
    """Read the time after which the task is not to be evaluated; None if it has none.

    Celery writes ISO 8601; a time without an offset is UTC, as there. Raises `MessageRejected`.
    """
    value = headers.get("expires")
    if not value:
        return None
    expires: datetime | None = None
    try:
        if isinstance(value, str):
            expires = datetime.fromisoformat(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            expires = datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    if expires is not None and expires.tzinfo is None:
        expires = expires.replace(tzinfo=UTC)
    if expires is None or (not isinstance(value, str) and expires < EARLIEST):
        raise MessageRejected(
            RejectionReason.UNSUPPORTED_OPTION,
            f"the header 'expires' is {_shown(value)}: give a time in ISO 8601, or in Unix seconds",
        )
    return expires


def check_time(expires: datetime | None) -> None:
    """Refuse to evaluate what has expired. Raises `MessageRejected`."""
    if expires is None:
        return
    late = time.time() - expires.timestamp()
    if late >= 0:
        raise MessageRejected(
            RejectionReason.EXPIRED,
            f"expired {late:.1f} s before its turn ('expires'): send it again with more time, or "
            "start more workers",
        )


def _shown(value: object) -> str:
    return ascii(value[:40]) if isinstance(value, str) else f"a {type(value).__name__}"


def _unsupported(fix: str) -> MessageRejected:
    return MessageRejected(
        RejectionReason.UNSUPPORTED_OPTION, f"workers do not support the option {fix}"
    )
