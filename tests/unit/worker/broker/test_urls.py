"""worker.broker.urls: what a URL says about connections, for redis-py in both its forms."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tls import Authority
from worker.broker.urls import RedisURLError, async_connections, connections, without_password

Build = Callable[..., Any]


def options(pool: Any) -> dict[str, Any]:  # noqa: ANN401 - of either form
    return dict(pool.connection_kwargs)


@pytest.fixture(params=[connections, async_connections])
def build(request: pytest.FixtureRequest) -> Build:
    built: Build = request.param
    return built


@pytest.mark.parametrize("required", ["required", "CERT_REQUIRED"])
def test_certificates_are_checked_as_redis_py_or_celery_words_it(
    build: Build, required: str, tmp_path: Path
) -> None:
    authority = Authority(tmp_path).file
    quoted = quote(str(authority), safe="")
    pool = build(f"rediss://:pw@db:6380/1?ssl_cert_reqs={required}&ssl_ca_certs={quoted}")
    assert pool.connection_class.__name__ == "SSLConnection"
    assert options(pool)["ssl_cert_reqs"] == "required"
    assert options(pool)["ssl_ca_certs"] == str(authority)


def test_certificates_are_checked_unless_the_url_says_otherwise(build: Build) -> None:
    assert "ssl_cert_reqs" not in options(build("rediss://db"))
    made = connections("rediss://db").make_connection()
    assert isinstance(made, redis.SSLConnection)
    assert made.cert_reqs.name == "CERT_REQUIRED"
    assert options(build("rediss://db?ssl_cert_reqs=CERT_NONE"))["ssl_cert_reqs"] == "none"


def test_a_unix_socket_has_a_path_and_a_database(build: Build) -> None:
    pool = build("unix://worker:p%2Fw@/run/redis.sock?db=3", socket_timeout=2)
    found = options(pool)
    assert (found["path"], found["db"], found["password"]) == ("/run/redis.sock", 3, "p/w")
    assert "socket_keepalive" not in found


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://:p%40w@a:1;sentinel://b/2?master_name=primary&sentinel_password=s",
        "sentinel://:p%40w@a:1,b/2?master_name=primary&sentinel_password=s",
    ],
)
def test_sentinels_are_asked_for_their_server(build: Build, url: str) -> None:
    pool = build(url, socket_timeout=2)
    assert pool.service_name == "primary"
    assert (options(pool)["password"], options(pool)["db"]) == ("p@w", 2)
    asked = [options(each.connection_pool) for each in pool.sentinel_manager.sentinels]
    assert [(each["host"], each["port"]) for each in asked] == [("a", 1), ("b", 26379)]
    assert {each["password"] for each in asked} == {"s"}


def test_the_url_takes_precedence_except_for_the_protocol(build: Build) -> None:
    found = options(build("redis://db?socket_timeout=7&protocol=2", socket_timeout=2, protocol=3))
    assert (found["socket_timeout"], found["protocol"], found["socket_keepalive"]) == (7, 3, True)


SECRETS = ("Qzx7", "Wvk9", "Jjp5")
"""Parts of passwords, which nothing else contains."""


@settings(max_examples=500, deadline=None)
@given(
    scheme=st.sampled_from(["redis", "rediss", "unix", "sentinel"]),
    user=st.sampled_from(["", ":", "worker:"]),
    between=st.lists(st.sampled_from([*"@/#%?:[]&=;,\\é ", "%4", "%zz", "%2F", "\n"]), max_size=2),
    rest=st.sampled_from(
        [
            *("host:6379/0", "host", "host:x/0", "host:99999", "[::1]:6379", "[bad", "a..b/0"),
            *("/run/redis.sock", "host/0?socket_timeout=x", "host/0?unknown=1"),
            *("h1:1,h2:2/0?master_name=m", "h1;h2", "host?ssl_ca_certs=/none"),
        ]
    ),
)
def test_no_part_of_a_password_is_shown_however_the_url_is_written(
    scheme: str, user: str, between: list[str], rest: str
) -> None:
    password = SECRETS[0] + "".join(map("".join, zip(between, SECRETS[1:], strict=False)))
    url = f"{scheme}://{user}{password}@{rest}"
    shown = [without_password(url)]
    try:
        pool: Any = connections(url)
        found = options(pool)
        # redis-py's errors name the place that it connects to.
        shown += [str(found.get(name)) for name in ("host", "port", "path", "db")]
        for sentinel in getattr(getattr(pool, "sentinel_manager", None), "sentinels", []):
            shown.append(str(options(sentinel.connection_pool)["host"]))
    except RedisURLError as error:
        shown.append("".join(traceback.format_exception(error)))
    for secret in SECRETS:
        assert secret.lower() not in "".join(shown).lower()


def test_without_its_password_a_url_still_says_where_redis_is() -> None:
    assert without_password("redis://:secret@host:6379/0?db=1") == "redis://***@host:6379/0"
    assert without_password("unix:///a%40b/redis.sock?db=0") == "unix:///a%40b/redis.sock"


@pytest.mark.parametrize("url", ["unix:///run/a%40b.sock", "unix://w:p%2Fw@/run/a.sock"])
def test_a_path_may_have_any_character_that_is_escaped(build: Build, url: str) -> None:
    assert options(build(url))["path"].startswith("/run/a")
