"""Check the URL of Redis before it is used, so that no error shows a part of its password.

Knows what redis-py reads in a URL; connects to nothing.
"""

import re
from urllib.parse import urlsplit

import redis

from schemas import SQEHRMError

_FIX = (
    "give one such as redis://user:password@host:6379/0, and write / ? # @ and % in a password as "
    "%2F %3F %23 %40 and %25"
)


class RedisURLError(SQEHRMError):
    """The URL of Redis cannot be used."""


def check_redis_url(url: str) -> None:
    """Make sure that redis-py takes `url` as it is meant.

    redis-py takes 1234 for the port in `redis://:1234#56@host`, and shows it in the error about
    the connection. It also ignores a database that is no number. Raises `RedisURLError`.
    """
    try:
        parts = urlsplit(url)
        misread = "#" in url or "@" in parts.query or not re.fullmatch(r"/?[0-9]*", parts.path)
        (parts.hostname or "").encode("idna")
        pool = redis.ConnectionPool.from_url(url)
    except ValueError:
        misread = True
    if misread:
        # Without the cause, which quotes the URL.
        raise RedisURLError(f"SQE_REDIS_URL is not a URL of Redis: {_FIX}") from None
    try:
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, redis.RedisError) as error:
        raise RedisURLError(
            f"SQE_REDIS_URL has an option that redis-py does not take ({error}): correct the part "
            "after the question mark"
        ) from None
