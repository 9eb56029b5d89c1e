"""worker.delivery.trouble: what readiness and the log say about what Redis does not accept."""

import logging
import time

import pytest
import redis
from redis.exceptions import NoPermissionError, ReadOnlyError

from worker.delivery.trouble import PASSING_SECONDS, Trouble

LOST = redis.ConnectionError("Error 111 connecting to db:6379")
REFUSED = NoPermissionError("User worker has no permissions to run the 'publish' command")


@pytest.fixture
def trouble(caplog: pytest.LogCaptureFixture) -> Trouble:
    caplog.set_level(logging.INFO)
    return Trouble("store outcomes")


def test_what_lasts_is_a_reason_at_once(trouble: Trouble) -> None:
    assert trouble.reason() is None
    trouble.failed(REFUSED)
    assert trouble.reason() == f"cannot store outcomes: Redis answers: {REFUSED}"
    trouble.passed()
    assert trouble.reason() is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LOST, "Redis is not reachable (Error 111 connecting to db:6379)"),
        (ReadOnlyError("You can't write."), "Redis answers: You can't write"),
    ],
)
def test_what_may_pass_is_a_reason_after_some_seconds(
    trouble: Trouble, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    trouble.failed(error)
    now += PASSING_SECONDS - 1
    trouble.failed(error)
    assert trouble.reason() is None
    now += 2
    assert trouble.reason() == f"cannot store outcomes: {reason}"


def test_it_lasts_until_every_part_was_accepted(trouble: Trouble) -> None:
    trouble.failed(REFUSED, 1)
    trouble.failed(REFUSED, 2)
    trouble.passed(1)
    trouble.passed(3)
    assert trouble.reason() is not None
    trouble.passed(2)
    assert trouble.reason() is None


def test_an_outage_is_one_line_and_its_end_another(
    trouble: Trouble, caplog: pytest.LogCaptureFixture
) -> None:
    for part in range(64):
        trouble.failed(LOST, part)
        trouble.failed(redis.TimeoutError("Timeout reading from socket"), part)
    for part in range(64):
        trouble.passed(part)
    trouble.failed(REFUSED, 0)
    trouble.failed(REFUSED, 1)
    lost = "cannot store outcomes: Redis is not reachable (Error 111 connecting to db:6379)"
    assert caplog.messages == [
        f"{lost}; trying until it works",
        "can store outcomes again",
        f"cannot store outcomes: Redis answers: {REFUSED}; trying until it works",
    ]
