"""worker.client.outcomes: what lies in Redis is an outcome, or a clear error."""

import json

import pytest

from tests.support.stubs import message, verdict
from worker.client import UnreadableOutcome
from worker.client.outcomes import parse_all


def test_a_verdict_is_read() -> None:
    made = verdict(message())
    stored = json.dumps({"status": "SUCCESS", "result": made.model_dump(mode="json")})
    assert parse_all(["a", "b"], [stored, None]) == {"a": made}


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\xff",
        b"garbage",
        b"[]",
        b"7",
        b"{}",
        b'{"result": null}',
        b'{"result": 7}',
        b'{"result": "reason"}',
        b'{"result": {}}',
        b'{"result": {"reason": "unheard"}}',
        b'{"result": {"reason": "\\ud800"}}',
        b"[" * 100_000,
    ],
)
def test_anything_else_is_an_error_that_names_the_message(stored: bytes) -> None:
    with pytest.raises(UnreadableOutcome, match=r"^what Redis holds for 'a' is no outcome"):
        parse_all(["a"], [stored])
