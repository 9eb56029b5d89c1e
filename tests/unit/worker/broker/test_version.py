"""worker.broker.version: a server that cannot run the scripts is refused."""

import pytest
import redis

from worker.broker.version import RedisVersionError, check_redis_version


class Server(redis.Redis):
    """A server that says what it is told to; connects to nothing."""

    def __init__(self, **info: str) -> None:
        super().__init__()
        self._info = info

    def info(self, *_: object, **__: object) -> dict[str, str]:
        if not self._info:
            raise redis.ConnectionError("nobody there")
        return self._info


def test_a_redis_before_7_is_refused_in_one_line() -> None:
    with pytest.raises(RedisVersionError) as refused:
        check_redis_version(Server(redis_version="6.2.14"))
    assert str(refused.value) == (
        "the Redis at SQE_REDIS_URL is version 6.2.14: use Redis 7 or later, or Valkey"
    )


@pytest.mark.parametrize(
    "info",
    [
        {"redis_version": "7.0.0"},
        {"redis_version": "7.2.4", "valkey_version": "9.1.2"},
        {"redis_version": "8.2.1"},
        {"redis_version": "255.255.255"},
        {"redis_version": "unstable"},
        {"server_name": "something else"},
        {},
    ],
)
def test_any_other_server_passes(info: dict[str, str]) -> None:
    check_redis_version(Server(**info))
