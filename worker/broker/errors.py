"""Redis's errors: which of them pass by themselves, and how they are worded.

Knows redis-py's exceptions; nothing of what was sent to Redis, which no wording repeats.
"""

import re

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from schemas import SQEHRMError
from worker.broker.tls import is_refused_certificate, tls_problem

_PASSING = (ReadOnlyError, OutOfMemoryError, NoScriptError, ClusterDownError, TryAgainError)
"""Replies that change without anyone changing Redis: a failover ends, memory becomes free."""

_PASSING_CODES = ("MISCONF", "NOREPLICAS", "BUSY")
"""The same among the replies for which redis-py has no class: a full disk, missing replicas, a long
script."""


class RedisUnfit(SQEHRMError):
    """Redis is too old, or does not permit what a worker needs."""


def is_lasting(error: Exception) -> bool:
    """Whether Redis answers the same until somebody changes its configuration or the worker's."""
    if isinstance(error, ResponseError):
        return not isinstance(error, _PASSING) and not str(error).startswith(_PASSING_CODES)
    # redis-py counts the others among the lost connections.
    return is_refused_certificate(error) or isinstance(
        error, RedisUnfit | AuthenticationError | AuthorizationError
    )


def describe(error: Exception) -> str:
    """Word an error in one line, without the command that caused it and without its arguments."""
    if isinstance(error, RedisUnfit):
        return str(error)
    if problem := tls_problem(error):
        return f"Redis is not reachable: {problem}"
    # redis-py quotes a pipeline's command before the problem, and with it a message's text.
    text = str(error).rpartition(" of pipeline caused error: ")[2]
    text = text.partition(", with args beginning with")[0]
    # The place in a script says nothing to its user.
    text = " ".join(re.sub(r" script: (\w+, )?on @.*", "", text).split()).removesuffix(".")
    if isinstance(error, ResponseError) or is_lasting(error):
        return f"Redis answers: {text}"
    return f"Redis is not reachable ({text})"
