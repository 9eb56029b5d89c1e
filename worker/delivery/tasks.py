"""The arguments of the two tasks: the messages in them.

Knows the form of a task's arguments; nothing of what `worker.delivery.service` does with a message.
"""

from typing import Any

from schemas import MessageRejected, RejectionReason
from worker.broker.app import EVALUATE, EVALUATE_BATCH, MAX_BATCH
from worker.delivery.envelope import Envelope, read_json, reading
from worker.delivery.options import check_embedded


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
