"""The two Celery tasks: take the messages out of the arguments and hand them to the service.

Knows the form of a task's arguments; nothing of what `worker.delivery.service` does with a message.
"""

from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.exceptions import Reject

from schemas import MessageRejected, RejectionReason, SQEHRMError
from worker.broker.app import EVALUATE, EVALUATE_BATCH, MAX_BATCH
from worker.delivery.envelope import Envelope, Refusal, read_json, reading
from worker.delivery.options import check_embedded
from worker.delivery.outcomes import DeliveryAborted
from worker.delivery.service import NoOutcome, Service
from worker.delivery.suspicion import AFTER_FAULT


def register_tasks(app: Celery, service: Service) -> None:
    """Add the two tasks to `app`.

    Their one argument comes from `worker.delivery.consumer`, so that arguments of any form lead to
    an outcome and never to a `TypeError`. It is an item that was read or refused.
    """
    options = {
        "acks_late": True,
        "reject_on_worker_lost": True,
        # The service stores the outcome itself, before the message is acknowledged.
        "ignore_result": True,
        "Strategy": "worker.delivery.consumer:strategy",
    }

    @app.task(name=EVALUATE, **options)
    def evaluate(item: Envelope | Refusal) -> None:
        process(item, lambda body: [message_of(body)], batch=False)

    @app.task(name=EVALUATE_BATCH, **options)
    def evaluate_batch(item: Envelope | Refusal) -> None:
        process(item, messages_of, batch=True)

    def process(
        item: Envelope | Refusal, read: Callable[[bytes], list[Any]], *, batch: bool
    ) -> None:
        try:
            if isinstance(item, Refusal):
                service.refuse(item)
                return
            try:
                with reading():
                    bodies = read(item.body)
            except MessageRejected as rejected:
                service.refuse(item.refuse(rejected))
                return
            service.process(item, bodies, batch=batch)
        # The message was not answered, so it goes back to the queue unacknowledged.
        except NoOutcome as error:
            raise Reject(str(error), requeue=AFTER_FAULT) from None
        except (SQEHRMError, DeliveryAborted) as error:
            raise Reject(str(error), requeue=True) from None
        except Exception as error:  # noqa: BLE001 - Celery would acknowledge the message
            service.note_unexpected(error)
            raise Reject(f"unexpected {type(error).__name__}", requeue=AFTER_FAULT) from None


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
