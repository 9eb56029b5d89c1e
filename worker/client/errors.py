"""The client's errors. Each is one line, and derives from `SQEHRMError`."""

from schemas import SQEHRMError
from worker.broker.tls import tls_problem


class BrokerUnreachable(SQEHRMError):
    """Redis cannot be reached, or does not accept the message."""


class ResultTimeout(SQEHRMError, TimeoutError):
    """No outcome arrived in time; the message may still be evaluated later."""


class NotAMessageError(SQEHRMError, TypeError):
    """Something else than an `SQEMessage` was to be sent."""


class UnreadableOutcome(SQEHRMError):
    """Redis holds something else than an outcome in the place of a message's outcome."""


def unreachable(error: Exception) -> BrokerUnreachable:
    """Word an error of redis-py for an agent."""
    if found := tls_problem(error):
        return BrokerUnreachable(f"Redis is not reachable: {found}")
    # In a transaction, redis-py quotes the command before the problem, and with it the message.
    problem = str(error).rpartition(" of pipeline caused error: ")[2]
    return BrokerUnreachable(
        f"Redis does not answer as it should ({problem}): check that it runs, and SQE_REDIS_URL"
    )
