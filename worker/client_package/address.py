"""The URL of Redis and the namespace, for a client that was given none."""

import os

from schemas import SQEHRMError
from worker.broker.keys import Namespace
from worker.broker.urls import RedisURLError


def redis_url() -> str:
    """Return `SQE_REDIS_URL`. Raises `RedisURLError` if it is not set."""
    url = os.environ.get("SQE_REDIS_URL")
    if not url:
        raise RedisURLError("SQE_REDIS_URL is not set: give one such as redis://localhost:6379/0")
    return url


def namespace() -> Namespace:
    """Return the namespace in `SQE_NAMESPACE`. Raises `NamespaceError`."""
    return Namespace(os.environ.get("SQE_NAMESPACE", ""))


def wait_replicas() -> int:
    """Return the number of replicas that confirm each message. Raises `SQEHRMError`."""
    text = os.environ.get("SQE_WAIT_REPLICAS") or "0"
    if not text.isdecimal():
        raise SQEHRMError(f"SQE_WAIT_REPLICAS {text!r}: give a number of replicas, such as 1")
    return int(text)
