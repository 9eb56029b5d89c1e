"""The URL of Redis: read and checked before it is used, and turned into connections.

Knows the forms of a URL and what redis-py makes of them. No error shows a part of a password.
"""

# Some of redis-py's functions have no types.
# mypy: disallow-untyped-calls=False

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.connection import parse_url as parse_async_url
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from schemas import SQEHRMError
from worker.broker.tls import file_problem

SENTINEL_PORT = 26379
"""Port of a Sentinel whose URL names none; Redis's own default."""

SENTINEL_TIMEOUT = 1.0
"""Seconds for a Sentinel to answer, after which another one is asked."""

_MAX_SHOWN = 120
"""Characters of redis-py's error about an option, which quotes the option."""

_OPTION = "[a-z0-9_]+=[!-%'->A-~]*"
_QUERY = re.compile(f"({_OPTION}(&{_OPTION})*)?")
"""Options as redis-py names them, without ? and @: what follows an unescaped ? in a password is
none, and would be shown in the error about it."""

_FIX = (
    "give one such as redis://user:password@host:6379/0, and write / ? # @ and % in a password as "
    "%2F %3F %23 %40 and %25"
)


class RedisURLError(SQEHRMError):
    """The URL of Redis cannot be used."""


@dataclass(frozen=True, slots=True)
class _Parsed:
    """The parts of a URL."""

    url: str
    """A URL of one server, in a form that redis-py reads."""
    sentinels: tuple[tuple[str, int], ...] = ()
    """Hosts and ports of the Sentinels; none for a URL that names a server."""


class _Sentinels(redis.sentinel.Sentinel):
    """Sentinels that are asked on new connections, by any number of threads at once.

    redis-py changes their order when one answers, and threads that ask at that moment may miss it.
    """

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Ask each in turn. Raises `redis.ConnectionError`."""
        asked = redis.sentinel.Sentinel(_addresses(self), sentinel_kwargs=self.sentinel_kwargs)
        try:
            host, port = asked.discover_master(service_name)
        except redis.sentinel.MasterNotFoundError:
            raise _unknown(service_name) from None
        finally:
            for each in asked.sentinels:
                each.close()
        return host, port


class _AsyncSentinels(redis.asyncio.sentinel.Sentinel):
    """The same for asyncio: nobody would close their connections at the end of an event loop."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Ask each in turn. Raises `redis.ConnectionError`."""
        asked = redis.asyncio.sentinel.Sentinel(
            _addresses(self), sentinel_kwargs=self.sentinel_kwargs
        )
        try:
            host, port = await asked.discover_master(service_name)
        except redis.asyncio.sentinel.MasterNotFoundError:
            raise _unknown(service_name) from None
        finally:
            for each in asked.sentinels:
                await each.aclose()
        return host, port


def _addresses(sentinels: _Sentinels | _AsyncSentinels) -> list[tuple[str, int]]:
    asked = [each.connection_pool.connection_kwargs for each in sentinels.sentinels]
    return [(each["host"], each["port"]) for each in asked]


def _unknown(name: str) -> redis.ConnectionError:
    # redis-py's own error quotes its connections in several hundred characters.
    return redis.ConnectionError(f"no Sentinel knows where {name!r} is")


def without_password(url: str) -> str:
    """Word a URL for a log: without user and password, and without options, which may have more."""
    return re.sub(r"(?s)(?<=//).*@", "***@", url).partition("?")[0]


def check_redis_url(url: str) -> None:
    """Make sure that `url` can be used. Raises `RedisURLError`."""
    connections(url)


def connections(url: str, **defaults: Any) -> redis.ConnectionPool:  # noqa: ANN401 - redis-py's
    """Build a pool of connections to the server of `url`; connects to nothing.

    Args:
        url: `redis://`, `rediss://`, `unix://`, or `sentinel://` with a `master_name`.
        **defaults: Options of redis-py's connections; those in the URL take precedence.

    Raises:
        RedisURLError: The URL cannot be used.
    """
    try:
        parsed = _parse(url)
        options = _options(parse_url(parsed.url), defaults)
    except ValueError:
        # Without the cause, which quotes the URL.
        raise RedisURLError(f"SQE_REDIS_URL is not a URL of Redis: {_FIX}") from None
    try:
        if parsed.sentinels:
            name, kwargs = _take_sentinel_options(options)
            kwargs["retry"] = Retry(NoBackoff(), 0)
            sentinels = _Sentinels(parsed.sentinels, sentinel_kwargs=kwargs)
            pool: redis.ConnectionPool = redis.sentinel.SentinelConnectionPool(
                name, sentinels, **options
            )
        else:
            pool = redis.ConnectionPool(**options)
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, redis.RedisError) as error:
        problem = str(error)[:_MAX_SHOWN]
        raise RedisURLError(
            f"SQE_REDIS_URL has an option that redis-py does not take ({problem}): correct the "
            "part after the question mark"
        ) from None
    if unusable := file_problem(options):
        raise RedisURLError(f"SQE_REDIS_URL: {unusable}")
    return pool


def async_connections(
    url: str,
    **defaults: Any,  # noqa: ANN401 - redis-py's
) -> redis.asyncio.ConnectionPool:
    """Do the same as `connections` for asyncio, with a URL that was checked."""
    parsed = _parse(url)
    options = _options(dict(parse_async_url(parsed.url)), defaults)
    if not parsed.sentinels:
        return redis.asyncio.ConnectionPool(**options)
    name, kwargs = _take_sentinel_options(options)
    kwargs["retry"] = AsyncRetry(NoBackoff(), 0)
    sentinels = _AsyncSentinels(parsed.sentinels, sentinel_kwargs=kwargs)
    return redis.asyncio.sentinel.SentinelConnectionPool(name, sentinels, **options)


def _parse(url: str) -> _Parsed:
    """Read `url`, and make sure that redis-py reads it as it is meant. Raises `ValueError`.

    redis-py takes 1234 for the port in `redis://:1234#56@host`, and shows it in the error about
    the connection. It also ignores a database that is no number.
    """
    parsed = _parse_sentinels(url) if url.startswith("sentinel://") else _Parsed(url)
    parts = urlsplit(parsed.url)
    if parts.scheme == "unix":
        # Anything else before the path is the beginning of a password with a slash.
        is_sound = bool(parts.path) and "@" not in parts.path
        is_sound = is_sound and (not parts.netloc or parts.netloc.endswith("@"))
    else:
        is_sound = bool(re.fullmatch(r"/?[0-9]*", parts.path))
    if not is_sound or "#" in url or not _QUERY.fullmatch(parts.query):
        raise ValueError
    for host in (parts.hostname or "", *(host for host, _ in parsed.sentinels)):
        host.encode("idna")
    return parsed


def _parse_sentinels(url: str) -> _Parsed:
    """Read the URL of Sentinels, as Celery writes it or with a comma between the hosts.

    Celery: `sentinel://:password@host-1:26379;sentinel://host-2:26379/0`. User, password and
    database are those of the server.
    """
    joined = re.sub("[;,]sentinel://", ";", url).removeprefix("sentinel://")
    nodes = re.split("[/?#]", joined, maxsplit=1)[0]
    rest = joined.removeprefix(nodes)
    split = [urlsplit(f"redis://{node}") for node in re.split("[;,]", nodes)]
    logins = {each.netloc.rpartition("@")[0] + "@" for each in split if "@" in each.netloc}
    sentinels = tuple((each.hostname or "", each.port or SENTINEL_PORT) for each in split)
    if not all(host for host, _ in sentinels) or (logins and "@" not in split[0].netloc):
        raise ValueError
    # Two that differ are a password with a comma or semicolon. Raises `ValueError`.
    (login,) = logins or {""}
    return _Parsed(f"redis://{login}{split[0].hostname}{rest}", sentinels)


def _options(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Join the options in a URL with `defaults`, and translate what Celery names differently."""
    # Each use of a connection needs its own version of the protocol.
    given.pop("protocol", None)
    if "ssl_cert_reqs" in given:
        given["ssl_cert_reqs"] = given["ssl_cert_reqs"].lower().removeprefix("cert_")
    # A Unix socket takes no keepalive.
    keepalive = {} if "path" in given else {"socket_keepalive": True}
    return {**keepalive, **defaults, **given}


def _take_sentinel_options(options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Take out of `options` the name of the Sentinels' server, and how to connect to Sentinels.

    Raises `RedisURLError` if the name is missing.
    """
    if "master_name" not in options:
        raise RedisURLError(
            "SQE_REDIS_URL does not say which server its Sentinels watch: add ?master_name=NAME, "
            "the name after `sentinel monitor` in their configuration"
        )
    del options["host"]
    return options.pop("master_name"), {
        "username": options.pop("sentinel_username", None),
        "password": options.pop("sentinel_password", None),
        "socket_timeout": SENTINEL_TIMEOUT,
        "socket_connect_timeout": SENTINEL_TIMEOUT,
    }
