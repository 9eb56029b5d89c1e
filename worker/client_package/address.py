"""The URL of Redis, for a client that was given none."""

import os

from worker.broker.urls import RedisURLError


def redis_url() -> str:
    """Return `SQE_REDIS_URL`. Raises `RedisURLError` if it is not set."""
    url = os.environ.get("SQE_REDIS_URL")
    if not url:
        raise RedisURLError("SQE_REDIS_URL is not set: give one such as redis://localhost:6379/0")
    return url
