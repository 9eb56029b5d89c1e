"""The client for agents: enqueue messages and fetch their verdicts.

    from worker.client import SQEMessage, result, submit

    message_id = submit(SQEMessage.create(agent_id="planner", prompt="…", completion="…"))
    verdict = result(message_id)

- `blocking`: the plain form, whose names are here
- `asyncio`: the same names for asyncio
- `tasks`: messages as Celery tasks
- `outcomes`: stored outcomes, and what a waiting call still needs
- `announcements`: how waiting calls learn of outcomes, on one connection
- `address`: the URL of Redis, for a client that was given none
- `errors`: the client's errors

May import `schemas`, `worker.settings` and `worker.broker`. Needs redis and pydantic only: with
parts of `schemas` and `worker.broker`, these modules are also the distribution `sqe-hrm-client`.
"""

from schemas import (
    MessageRejected,
    Rejection,
    RejectionReason,
    SQEHRMError,
    SQEMessage,
    Verdict,
    parse_message,
)
from worker.broker.keys import BACKFILL_QUEUE, LIVE_QUEUE
from worker.broker.urls import RedisURLError
from worker.client.blocking import Client, poll, result, results, submit, submit_many
from worker.client.errors import (
    BrokerUnreachable,
    NotAMessageError,
    ResultTimeout,
    UnreadableOutcome,
)

__all__ = [
    "BACKFILL_QUEUE",
    "LIVE_QUEUE",
    "BrokerUnreachable",
    "Client",
    "MessageRejected",
    "NotAMessageError",
    "RedisURLError",
    "Rejection",
    "RejectionReason",
    "ResultTimeout",
    "SQEHRMError",
    "SQEMessage",
    "UnreadableOutcome",
    "Verdict",
    "parse_message",
    "poll",
    "result",
    "results",
    "submit",
    "submit_many",
]
