"""Check that Redis is new enough for the workers' scripts.

Knows version numbers; nothing of what is stored in Redis.
"""

import redis

from worker.broker.errors import RedisUnfit

OLDEST = 7
"""First major version whose scripts may have flags, such as the one to run at full memory."""


class RedisVersionError(RedisUnfit):
    """The server is too old."""


def check_redis_version(client: redis.Redis) -> None:
    """Make sure that the server can run the scripts. Raises `RedisVersionError`.

    A server that does not answer, or not to this user, passes: it may be about to start.
    """
    try:
        version = str(client.info("server")["redis_version"])
    except (redis.RedisError, KeyError):
        return
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) < OLDEST:
        raise RedisVersionError(
            f"the Redis at SQE_REDIS_URL is version {version}: use Redis {OLDEST} or later, or "
            "Valkey"
        )
