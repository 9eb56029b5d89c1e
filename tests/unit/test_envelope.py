"""worker.envelope: what of a queue's items is a task, and what is refused why."""

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas import MessageRejected, RejectionReason
from worker.app import EVALUATE, create_app
from worker.envelope import Envelope, EnvelopeRejected, read_envelope

BODY = b'[["{}"], {}, {}]'

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def item(**changes: object) -> bytes:
    """A sound item; `headers` and `properties` change theirs, None removes a part."""
    parts: dict[str, Any] = {
        "body": base64.b64encode(BODY).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": EVALUATE, "id": "t1"},
        "properties": {"body_encoding": "base64", "delivery_tag": "x"},
    }
    for name, change in changes.items():
        key = name.replace("_", "-") if name.startswith("content") else name
        sound = parts[key]
        parts[key] = {**sound, **change} if isinstance(change, dict) else change
    return json.dumps(parts).encode()


def test_a_sound_item_is_read() -> None:
    assert read_envelope(item(), "q") == Envelope(EVALUATE, "t1", "q", BODY, None, keep_result=True)


def test_headers_say_when_it_was_enqueued_and_whether_a_result_is_wanted() -> None:
    sound = item(headers={"sqe_enqueued_at": 12.5, "ignore_result": True})
    envelope = read_envelope(sound, "q")
    assert (envelope.enqueued_at, envelope.keep_result) == (12.5, False)


def test_what_celery_itself_makes_is_read() -> None:
    app = create_app("memory://")
    message = app.amqp.as_task_v2("t1", EVALUATE, args=["text"], kwargs={})
    body = base64.b64encode(json.dumps(message.body).encode()).decode()
    made = item(body=body, headers=message.headers, properties=message.properties)
    assert json.loads(read_envelope(made, "q").body)[:2] == [["text"], {}]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"garbage", RejectionReason.NOT_JSON),
        (b"", RejectionReason.NOT_JSON),
        (b"\xff\xfe", RejectionReason.INVALID_UNICODE),
        (b"[" * 100_000, RejectionReason.TOO_DEEP),
        (b'{"a":' * 100_000, RejectionReason.TOO_DEEP),
        (b"[]", RejectionReason.NOT_A_MESSAGE),
        (b"{}", RejectionReason.NOT_A_MESSAGE),
        (b"7", RejectionReason.NOT_A_MESSAGE),
        (item(headers=None), RejectionReason.NOT_A_MESSAGE),
        (item(properties=[]), RejectionReason.NOT_A_MESSAGE),
        (item(body=None), RejectionReason.NOT_A_MESSAGE),
        (item(headers={"id": None}), RejectionReason.NOT_A_MESSAGE),
        (item(headers={"id": ["t1"]}), RejectionReason.NOT_A_MESSAGE),
        (item(headers={"id": "a\nb"}), RejectionReason.NOT_A_MESSAGE),
        (item(headers={"id": "x" * 256}), RejectionReason.NOT_A_MESSAGE),
        (item(headers={"task": "celery.chord"}), RejectionReason.UNKNOWN_TASK),
        (item(headers={"task": None}), RejectionReason.UNKNOWN_TASK),
        (item(headers={"task": ["x"]}), RejectionReason.UNKNOWN_TASK),
        (item(headers={"task": {}}), RejectionReason.UNKNOWN_TASK),
        (item(headers={"compression": "application/x-gzip"}), RejectionReason.NOT_JSON),
        (item(content_type="application/x-python-serialize"), RejectionReason.NOT_JSON),
        (item(body="no base64!"), RejectionReason.NOT_JSON),
        (item(body="\ud800", properties={"body_encoding": None}), RejectionReason.INVALID_UNICODE),
    ],
)
def test_what_is_no_task_is_refused(sent: bytes, reason: RejectionReason) -> None:
    with pytest.raises(MessageRejected) as caught:
        read_envelope(sent, "q")
    assert caught.value.reason is reason
    assert "\n" not in caught.value.detail


def test_a_refused_task_is_known_by_its_id_where_it_has_one() -> None:
    with pytest.raises(EnvelopeRejected) as caught:
        read_envelope(item(headers={"task": "other"}), "q")
    assert caught.value.task_id == "t1"


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_read_or_refused(sent: bytes) -> None:
    with pytest.raises(MessageRejected):
        read_envelope(sent, "q")


@example(part="body", key="task", value="\x80", whole=False)
@given(
    part=st.sampled_from(["body", "content-type", "headers", "properties"]),
    key=st.sampled_from(["task", "id", "compression", "sqe_enqueued_at", "body_encoding"]),
    value=json_values,
    whole=st.booleans(),
)
def test_any_value_in_any_place_is_read_or_refused(
    part: str,
    key: str,
    value: object,
    *,
    whole: bool,
) -> None:
    parts = json.loads(item())
    if whole or not isinstance(parts[part], dict):
        parts[part] = value
    else:
        parts[part][key] = value
    with contextlib.suppress(MessageRejected):
        assert isinstance(read_envelope(json.dumps(parts).encode(), "q"), Envelope)
