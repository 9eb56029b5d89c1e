"""worker.telemetry.latest: a value that is there at once, or is absent."""

import threading
import time
from collections.abc import Callable

import pytest

from tests.support.processes import wait_for
from worker.telemetry import latest
from worker.telemetry.latest import Latest


class Source:
    """A value that the test sets; reading it may take as long as the test wants."""

    def __init__(self) -> None:
        self.value: int | None = 1
        self.answers = threading.Event()
        self.answers.set()

    def read(self) -> int | None:
        self.answers.wait(60)
        if self.value == 0:
            raise ZeroDivisionError
        return self.value


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setattr(latest, "READ_SECONDS", 0.01)
    return Source()


@pytest.fixture
def advance(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock."""
    ahead, clock = 0.0, time.monotonic

    def advance(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds

    monkeypatch.setattr(time, "monotonic", lambda: clock() + ahead)
    return advance


def test_the_value_is_there_from_the_start_and_follows(source: Source) -> None:
    value = Latest(source.read)
    assert value() is None
    value.start()
    assert value() == 1
    source.value = 2
    wait_for(lambda: value() == 2, "read again")


def test_nobody_waits_for_a_reading_and_an_old_one_counts_no_more(
    source: Source, advance: Callable[[float], None]
) -> None:
    value = Latest(source.read)
    value.start()
    source.answers.clear()
    wait_for(lambda: value() == 1, "there while the next reading hangs")
    advance(latest.OLDEST_SECONDS - 5)
    assert value() == 1
    advance(5.1)
    assert value() is None
    source.answers.set()
    wait_for(lambda: value() == 1, "read again")


def test_readings_that_fail_change_nothing_until_the_last_good_one_is_old(
    source: Source, advance: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    value = Latest(source.read)
    value.start()
    source.value = 0
    wait_for(lambda: "ZeroDivisionError" in caplog.text, "a reading that breaks")
    source.value = None
    assert value() == 1
    advance(latest.OLDEST_SECONDS + 0.1)
    assert value() is None
    source.value = 3
    wait_for(lambda: value() == 3, "read again")
