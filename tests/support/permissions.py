"""A user of a test's Redis that may not run some commands, also not in scripts."""

from typing import Any

import redis


def permit(store: redis.Redis, *rules: str) -> None:
    """Add rules to the user's, such as `-rpush`."""
    call: Any = store.execute_command
    call("ACL", "SETUSER", "limited", *rules)


def limited_url(store: redis.Redis, redis_url: str, *rules: str) -> str:
    """The URL of a user that may do everything but what the rules take away."""
    permit(store, "on", ">secret", "+@all", "~*", "&*", *rules)
    return redis_url.replace("redis://", "redis://limited:secret@")
