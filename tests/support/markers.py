"""Markers stored in a Redis without the outcomes that they belong to."""

import uuid
from collections.abc import Iterable

import redis

from worker.broker.keys import AGENTS, CANARIES, COUNTED, EVIDENCE, NOTED, attempt
from worker.delivery.scripts import STORE, outcome_arguments

DAY = 86_400


def store_markers(
    store: redis.Redis, markers: Iterable[str], *, seconds: int = DAY, token: str | None = None
) -> list[int]:
    """Store outcomes with these markers and without results, in one attempt.

    Args:
        store: The Redis.
        markers: The markers, from `marker_of`.
        seconds: Seconds for which they are remembered.
        token: Name of the attempt; none for a new one.

    Returns:
        For each marker, 1 if it was not remembered, otherwise 0.
    """
    outcomes = [each for marker in markers for each in outcome_arguments(marker)]
    keys = (*NOTED, COUNTED, attempt("test"), AGENTS, CANARIES, EVIDENCE)
    reply: list[int] = STORE(store, keys, seconds, token or uuid.uuid4().hex, 9, "", 0, *outcomes)
    return reply
