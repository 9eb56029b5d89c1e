"""worker.delivery.envelope: items of a queue are read as tasks, or refused with a reason."""

import base64
import contextlib
import json
import math
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas import MessageRejected, RejectionReason
from worker.broker.app import EVALUATE, create_app
from worker.delivery import envelope
from worker.delivery.envelope import Envelope, EnvelopeRejected, Refusal, read_envelope, read_item

BODY = b'[["{}"], {}, {}]'

NUMBERS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1e308",
    "-1e308",
    "-0.0",
    str(10**400),
    str(-(10**400)),
    "9" * 5000,
    "-" + "9" * 5000,
    "1." + "9" * 5000,
)
"""JSON texts that Python reads as numbers, or refuses because of their number of digits."""

OTHERS = (
    "null",
    "true",
    '""',
    '"1e999"',
    r'"\ud800"',
    r'"\u0000"',
    '"' + "x" * 100_000 + '"',
    "{}",
    "[]",
    "[" * 500 + "]" * 500,
    '{"a":' * 500 + "1" + "}" * 500,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400)])
    | st.floats()
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def item(**changes: object) -> bytes:
    """A sound item with `changes`: dictionaries change single headers and properties."""
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


def hostile_item(part: str, key: str, text: str) -> bytes:
    """A sound item with `text` as the value of one header or property."""
    return item(**{part: {key: "?"}}).replace(b'"?"', text.encode())


def test_a_sound_item_is_read() -> None:
    assert read_envelope(item(), "q") == Envelope(EVALUATE, "t1", "q", BODY, None, keep_result=True)


def test_headers_say_when_an_item_was_enqueued_and_whether_its_result_is_wanted() -> None:
    sound = item(headers={"sqe_enqueued_at": 12.5, "ignore_result": True})
    envelope = read_envelope(sound, "q")
    assert (envelope.enqueued_at, envelope.keep_result) == (12.5, False)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("0.5", 0.5),
        ("60", 60.0),
        ("1e300", 1e300),
        ("-1", None),
        ("1e999", None),
        ("NaN", None),
        ("9" * 5000, None),
        ("true", None),
        ('"60"', None),
        ("null", None),
        ("[]", None),
    ],
)
def test_a_header_says_how_long_outcomes_are_wanted_and_nonsense_leaves_the_default(
    text: str, seconds: float | None
) -> None:
    read = read_envelope(hostile_item("headers", "sqe_keep_result", text), "q")
    assert read.result_seconds == seconds
    refused = read.refuse(MessageRejected(RejectionReason.NOT_JSON, "why"))
    assert refused.result_seconds == seconds


def test_an_item_that_celery_made_is_read() -> None:
    app = create_app("redis://localhost")
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
def test_an_item_that_is_not_a_task_is_refused(sent: bytes, reason: RejectionReason) -> None:
    with pytest.raises(MessageRejected) as caught:
        read_envelope(sent, "q")
    assert caught.value.reason is reason
    assert "\n" not in caught.value.detail


def test_a_refused_task_is_known_by_its_id_if_it_has_one() -> None:
    with pytest.raises(EnvelopeRejected) as caught:
        read_envelope(item(headers={"task": "other"}), "q")
    assert caught.value.task_id == "t1"


@pytest.mark.parametrize(
    ("sent", "task_id"), [(b"garbage", None), (item(headers={"task": "other"}), "t1")]
)
def test_a_refusal_says_what_was_refused_where_and_who_waits(
    sent: bytes, task_id: str | None
) -> None:
    refusal = read_item(sent, "q", "q/1")
    assert isinstance(refusal, Refusal)
    assert (refusal.body, refusal.queue, refusal.identity) == (sent, "q", "q/1")
    assert (refusal.message_id, refusal.result_ids) == (task_id, (task_id,))


def test_a_sound_item_has_no_refusal() -> None:
    assert read_item(item(), "q", "q/1") == read_envelope(item(), "q")


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_read_or_refused(sent: bytes) -> None:
    with pytest.raises(MessageRejected):
        read_envelope(sent, "q")


@pytest.mark.parametrize(
    ("part", "key"),
    [
        *(
            ("headers", key)
            for key in (
                "retries",
                "timelimit",
                "group",
                "root_id",
                "parent_id",
                "argsrepr",
                "origin",
                "sqe_enqueued_at",
            )
        ),
        *(
            ("properties", key)
            for key in (
                "correlation_id",
                "delivery_info",
                "delivery_mode",
                "delivery_tag",
                "priority",
                "reply_to",
            )
        ),
    ],
)
@pytest.mark.parametrize("text", [*NUMBERS, *OTHERS], ids=lambda text: text[:10])
def test_no_value_of_an_unused_field_refuses_a_task(part: str, key: str, text: str) -> None:
    read = read_envelope(hostile_item(part, key, text), "q")
    assert (read.task, read.task_id, read.body) == (EVALUATE, "t1", BODY)
    assert read.enqueued_at is None or math.isfinite(read.enqueued_at)


@pytest.mark.parametrize(
    "text",
    [
        *(text for text in NUMBERS if not math.isfinite(float(text))),
        *OTHERS,
    ],
    ids=lambda text: text[:10],
)
def test_a_time_that_is_no_finite_number_is_absent(text: str) -> None:
    assert read_envelope(hostile_item("headers", "sqe_enqueued_at", text), "q").enqueued_at is None


def test_a_time_may_be_an_integer() -> None:
    sent = item(headers={"sqe_enqueued_at": int(time.time())})
    assert read_envelope(sent, "q").enqueued_at == pytest.approx(time.time(), abs=2)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("headers", "id"),
        ("headers", "task"),
        ("headers", "compression"),
        ("headers", "ignore_result"),
        ("headers", "eta"),
        ("headers", "expires"),
        ("properties", "body_encoding"),
    ],
)
@pytest.mark.parametrize("text", [*NUMBERS, *OTHERS], ids=lambda text: text[:10])
def test_any_value_of_a_used_field_is_read_or_refused(
    caplog: pytest.LogCaptureFixture, part: str, key: str, text: str
) -> None:
    with contextlib.suppress(EnvelopeRejected):
        read = read_envelope(hostile_item(part, key, text), "q")
        assert key not in {"id", "task"} or read.task_id == json.loads(text)
    assert not caplog.text, "no unforeseen error"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OverflowError("hush"), RejectionReason.NOT_A_MESSAGE),
        (ValueError("hush"), RejectionReason.NOT_A_MESSAGE),
        (RecursionError("hush"), RejectionReason.TOO_DEEP),
        (MemoryError("hush"), RejectionReason.TOO_LARGE),
        (UnicodeDecodeError("utf-8", b"hush", 0, 1, "hush"), RejectionReason.INVALID_UNICODE),
    ],
)
def test_an_unforeseen_error_refuses_the_item(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    reason: RejectionReason,
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(envelope, "_seconds", broken)
    with pytest.raises(EnvelopeRejected) as caught:
        read_envelope(item(), "q")
    assert (caught.value.reason, caught.value.task_id) == (reason, "t1")
    assert caught.value.unexpected
    assert type(error).__name__ in caught.value.detail
    assert type(error).__name__ in caplog.text
    assert "hush" not in caught.value.detail + caplog.text


def test_an_interrupt_is_not_blamed_on_the_item(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(envelope, "_seconds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_envelope(item(), "q")


@example(part="body", key="task", value="\x80", whole=False)
@given(
    part=st.sampled_from(["body", "content-type", "headers", "properties"]),
    key=st.sampled_from(
        ["task", "id", "compression", "eta", "expires", "sqe_enqueued_at", "body_encoding"]
    ),
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
        read = read_envelope(json.dumps(parts).encode(), "q")
        assert read.enqueued_at is None or math.isfinite(read.enqueued_at)


JSON_TEXTS = st.sampled_from((*NUMBERS, *OTHERS, '{"a":1,"a":2}', " 1 ", r'"\u00e9\ud83d\ude00"'))


@given(JSON_TEXTS | json_values.map(json.dumps))
def test_json_is_read_as_python_reads_it(text: str) -> None:
    def integer(digits: str) -> int | float:
        return int(digits) if len(digits) < 4300 else float(digits)

    read = envelope.read_json(text.encode())
    assert repr(read) == repr(json.loads(text, parse_int=integer))


@given(st.binary(max_size=8) | st.text(max_size=8).map(str.encode))
def test_text_that_is_not_json_is_refused_as_python_refuses_it(text: bytes) -> None:
    try:
        expected = json.loads(text.decode())
    except ValueError:
        with pytest.raises(MessageRejected):
            envelope.read_json(text)
    else:
        assert repr(envelope.read_json(text)) == repr(expected)
