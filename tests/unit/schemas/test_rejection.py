"""Refusals as errors, and the dead letters of refused messages."""

import base64
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import DeadLetter, MessageRejected, Rejection, RejectionReason, SQEHRMError

LETTER = {
    "message_id": "m-1",
    "reason": "empty_text",
    "detail": "field 'prompt': empty",
    "queue": "sqe.evaluate",
    "worker": "host:1",
    "rejected_at": "2026-01-31T12:00:00Z",
}


def letter(original: bytes, **fields: Any) -> DeadLetter:  # noqa: ANN401
    content = {**LETTER, "body": base64.b64encode(original).decode(), **fields}
    return DeadLetter.model_validate_json(json.dumps(content))


def test_a_refusal_is_a_one_line_error_of_this_project() -> None:
    refused = MessageRejected(RejectionReason.TOO_LARGE, "9 bytes: shorten them")
    assert isinstance(refused, SQEHRMError)
    assert str(refused) == "too_large: 9 bytes: shorten them"
    assert refused.reason is RejectionReason.TOO_LARGE
    assert refused.detail == "9 bytes: shorten them"


def test_a_refusal_can_be_built_again_from_its_arguments() -> None:
    refused = MessageRejected(RejectionReason.TOO_LARGE, "9 bytes: shorten them")
    again = pickle.loads(pickle.dumps(refused))  # noqa: S301 - made here
    assert (again.reason, str(again)) == (RejectionReason.TOO_LARGE, str(refused))
    reason: Any = "too_large"  # as it is in JSON
    assert MessageRejected(reason, "").reason is RejectionReason.TOO_LARGE


def test_reasons_are_suitable_as_metric_labels() -> None:
    assert len(RejectionReason) == 17
    assert all(reason.value == reason.name.lower() for reason in RejectionReason)


@given(st.binary(max_size=200))
def test_a_dead_letter_returns_the_bytes_it_was_made_from(body: bytes) -> None:
    first = letter(body)
    assert first.body == body
    stored = json.loads(first.model_dump_json())
    assert base64.b64decode(stored["body"]) == body
    assert DeadLetter.model_validate({**stored, "body": body}) == first


def test_the_id_of_an_unreadable_message_is_null() -> None:
    assert letter(b"", message_id=None).message_id is None


@pytest.mark.parametrize(
    "fields",
    [
        {"reason": "no_such_reason"},
        {"rejected_at": "2026-01-31T12:00:00"},
        {"body": "A"},
        {"extra": 1},
        {"detail": None},
        {"queue": None},
    ],
)
def test_a_dead_letter_keeps_to_its_form(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        letter(b"body", **fields)


@pytest.mark.parametrize("name", ["message_id", "reason", "detail"])
def test_an_answer_needs_all_of_its_fields(name: str) -> None:
    answer = {"message_id": None, "reason": "not_json", "detail": "line"}
    assert Rejection.model_validate(answer).reason is RejectionReason.NOT_JSON
    del answer[name]
    with pytest.raises(ValidationError):
        Rejection.model_validate(answer)
