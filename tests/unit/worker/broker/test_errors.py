"""worker.broker.errors: which errors of Redis last, and that no wording quotes a message."""

import pytest
import redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from worker.broker.errors import RedisUnfit, describe, is_lasting


@pytest.mark.parametrize(
    "error",
    [
        redis.ConnectionError("lost"),
        redis.TimeoutError("late"),
        BusyLoadingError("loading"),
        ReadOnlyError("a replica"),
        MasterDownError("a replica alone"),
        OutOfMemoryError("full"),
        ResponseError("MISCONF no disk"),
        ResponseError("NOREPLICAS not enough"),
        ResponseError("BUSY a script"),
    ],
)
def test_what_redis_recovers_from_by_itself_passes(error: Exception) -> None:
    assert not is_lasting(error)


@pytest.mark.parametrize(
    "error",
    [
        NoPermissionError("no"),
        AuthenticationError("wrong password"),
        ResponseError("WRONGTYPE no list"),
        ResponseError("unknown command"),
        RedisUnfit("too old"),
    ],
)
def test_what_somebody_has_to_change_lasts(error: Exception) -> None:
    assert is_lasting(error)


@pytest.mark.parametrize(
    ("text", "described"),
    [
        ("no list.", "no list"),
        ("Command # 1 (EVALSHA 1 secret) of pipeline caused error: no list", "no list"),
        ("unknown command 'X', with args beginning with: 'secret' ", "unknown command 'X'"),
        ("ACL failure in script: no script: 12ab, on @user_script:9.", "ACL failure in script: no"),
        ("no script: on @user_script:9.", "no"),
        ("two\nlines", "two lines"),
    ],
)
def test_a_description_is_one_line_without_what_was_sent(text: str, described: str) -> None:
    assert describe(ResponseError(text)) == f"Redis answers: {described}"
