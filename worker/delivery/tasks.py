"""The arguments of the two tasks: the messages in them, as they were sent.

Knows the form of a task's arguments; nothing of what `worker.delivery.service` does with a message.
"""

import json
import re
from typing import Any

from schemas import MessageRejected, RejectionReason
from worker.broker.app import EVALUATE, EVALUATE_BATCH, MAX_BATCH
from worker.delivery.envelope import Envelope, read_json, reading
from worker.delivery.options import check_embedded

_IDENTIFIER = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def bodies_of(envelope: Envelope) -> list[Any]:
    """Read the messages of a task. Raises `MessageRejected`, whatever the arguments are."""
    with reading():
        if envelope.task == EVALUATE:
            return [message_of(envelope.body)]
        return messages_of(envelope.body)


def message_of(body: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Read the argument of `sqe.evaluate`, by position or name. Raises `MessageRejected`."""
    return _argument(body, EVALUATE, "message", "the message")


def messages_of(body: bytes) -> list[Any]:
    """Read the argument of `sqe.evaluate_batch`, by position or name.

    Raises `MessageRejected` if it is not a list of at most `MAX_BATCH` messages.
    """
    messages = _argument(body, EVALUATE_BATCH, "messages", "a list of messages")
    if not isinstance(messages, list):
        raise _refused(EVALUATE_BATCH, "a list of messages")
    if len(messages) > MAX_BATCH:
        raise MessageRejected(
            RejectionReason.TOO_LARGE,
            f"{len(messages)} messages, but a batch may have {MAX_BATCH}: send several batches",
        )
    return messages


def own_id_of(body: Any) -> str | None:  # noqa: ANN401
    """Read the `message_id` in a refused message, if there is a valid one."""
    if isinstance(body, str):
        try:
            # An integer of any length must not hide the id.
            body = json.loads(body, parse_int=float)
        except (ValueError, RecursionError):
            return None
    own_id = body.get("message_id") if isinstance(body, dict) else None
    return own_id if isinstance(own_id, str) and _IDENTIFIER.fullmatch(own_id) else None


def original_bytes(body: Any) -> bytes:  # noqa: ANN401
    """Return the message as it was sent, or a decoded object as JSON."""
    if isinstance(body, str):
        return body.encode(errors="surrogatepass")
    return json.dumps(body, separators=(",", ":")).encode()


def _argument(body: bytes, task: str, name: str, what: str) -> Any:  # noqa: ANN401
    arguments = read_json(body)
    match arguments:
        case [_, _, {**options}, *_]:
            check_embedded(options)
    match arguments:
        case [[value], {**named}, *_] if not named:
            return value
        case [[], {**named}, *_] if named.keys() == {name}:
            return named[name]
    raise _refused(task, what)


def _refused(task: str, what: str) -> MessageRejected:
    return MessageRejected(
        RejectionReason.NOT_A_MESSAGE, f"{task} takes one argument: give it {what} and no more"
    )
