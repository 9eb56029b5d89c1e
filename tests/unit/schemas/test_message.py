"""Every way in which a body fails to be a message, and the reason that is given."""

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import (
    DEFAULT_MAX_MESSAGE_BYTES,
    Category,
    MessageRejected,
    RejectionReason,
    SQEMessage,
    parse_message,
)

PROMPT, COMPLETION = "pineapple prompt", "cucumber completion"
FIELDS = {
    "schema_version": 1,
    "message_id": "message-1",
    "agent_id": "agent:7",
    "prompt": PROMPT,
    "completion": COMPLETION,
}
OPTIONAL = {
    "puzzle_id": 7,
    "category": "ci_cd",
    "created_at": "2026-01-31T12:00:00.5+02:00",
    "tags": {"team": "blue", "empty": ""},
}
DEEP = 100_000


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in FIELDS.items() if key != name}


def nested(container: str) -> Any:  # noqa: ANN401
    value: Any = 0
    for _ in range(DEEP):
        value = [value] if container == "list" else {"a": value}
    return value


def refusal(body: Any, **options: int) -> MessageRejected:  # noqa: ANN401
    """The refusal of `body`: one printable line that quotes neither text."""
    with pytest.raises(MessageRejected) as caught:
        parse_message(body, **options)
    detail = caught.value.detail
    assert detail
    assert detail.isprintable()
    assert "pineapple" not in detail
    assert "cucumber" not in detail
    assert str(caught.value) == f"{caught.value.reason}: {detail}"
    return caught.value


# Sound messages.


def test_text_bytes_and_object_are_the_same_message() -> None:
    body = {**FIELDS, **OPTIONAL}
    message = parse_message(body)
    assert message == parse_message(json.dumps(body)) == parse_message(json.dumps(body).encode())
    assert message.puzzle_id == 7
    assert message.category is Category.CI_CD
    assert message.created_at is not None
    assert message.created_at.utcoffset() == timedelta(hours=2)
    assert message.tags == {"team": "blue", "empty": ""}


def test_optional_fields_may_be_absent_or_null() -> None:
    assert parse_message(FIELDS) == parse_message({**FIELDS, **dict.fromkeys(OPTIONAL)})


def test_a_message_survives_its_own_json() -> None:
    message = parse_message({**FIELDS, **OPTIONAL, "prompt": 'Grüße "\\ \x00 \U0001f600'})
    assert parse_message(message.model_dump_json()) == message


@pytest.mark.parametrize("identifier", ["a", "A-z_", "x" * 128, "0:.-_"])
def test_identifiers_may_have_the_allowed_characters(identifier: str) -> None:
    assert parse_message({**FIELDS, "message_id": identifier}).message_id == identifier


@pytest.mark.parametrize(
    "time", ["2026-01-31T12:00:00Z", "2026-01-31t12:00:00z", "2026-01-31 12:00:00.123-11:30"]
)
def test_times_may_have_any_offset(time: str) -> None:
    assert parse_message({**FIELDS, "created_at": time}).created_at is not None


def test_tags_at_their_limits_are_accepted() -> None:
    tags = {f"{index:064}": "v" * 256 for index in range(16)}
    assert parse_message({**FIELDS, "tags": tags}).tags == tags


# Refused bodies.


@pytest.mark.parametrize(
    "body",
    [
        "",
        b"",
        "not json",
        '{"prompt": "pineapple',
        f"{json.dumps(FIELDS)} pineapple",
        "{'prompt': 'pineapple'}",
        '{"prompt": "pine\napple"}',
        b"\xef\xbb\xbf{}",
        dict([*FIELDS.items(), (("pineapple",), 1)]),
        {**FIELDS, "extra": object()},
        {**FIELDS, "puzzle_id": 10**5000},
        json.dumps(FIELDS).replace("1", "1" * 5000, 1),
    ],
)
def test_text_that_is_not_json_is_refused(body: Any) -> None:  # noqa: ANN401
    assert refusal(body).reason is RejectionReason.NOT_JSON


def test_an_object_that_contains_itself_is_not_json() -> None:
    body: dict[str, Any] = {**FIELDS}
    body["tags"] = body
    assert refusal(body).reason is RejectionReason.NOT_JSON


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b'{"prompt": "pineapple \xc3("}',
        json.dumps(FIELDS).encode("utf-16"),
        json.dumps(FIELDS)[:-1] + ', "tags": {"a": "\ud800"}}',
        {**FIELDS, "prompt": "pineapple \ud800"},
        {**FIELDS, "completion": "\udc00 cucumber"},
        {**FIELDS, "message_id": "m\ud800"},
        {**FIELDS, "\ud800": 1},
        {**FIELDS, "tags": {"\udfff": ""}},
        json.dumps({**FIELDS, "prompt": "pineapple \ud800"}),
        '{"prompt": "\\ud800 pineapple"}',
        '{"prompt": "\\ud800\\u0041"}',
        '{"prompt": "\\udc00"}',
    ],
)
def test_invalid_unicode_is_refused(body: Any) -> None:  # noqa: ANN401
    assert refusal(body).reason is RejectionReason.INVALID_UNICODE


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"tags":[', '{"x":[[['])
def test_text_nested_too_deeply_is_refused(opening: str) -> None:
    assert refusal(opening * DEEP).reason is RejectionReason.TOO_DEEP


@pytest.mark.parametrize("container", ["list", "dict"])
@pytest.mark.parametrize("field", ["tags", "prompt", "extra"])
def test_objects_nested_too_deeply_are_refused(container: str, field: str) -> None:
    assert refusal({**FIELDS, field: nested(container)}).reason is RejectionReason.TOO_DEEP


def test_the_limit_counts_bytes_of_both_texts() -> None:
    body = {**FIELDS, "prompt": "ä" * 10, "completion": "\U0001f600" * 5}
    assert parse_message(body, max_bytes=40).prompt == "ä" * 10
    refused = refusal(body, max_bytes=39)
    assert refused.reason is RejectionReason.TOO_LARGE
    assert refused.detail == (
        "40 bytes, but prompt and completion may have 39 together: shorten them"
    )


@pytest.mark.parametrize("character", ["a", "é", "\u0000", "\U0001f600"])
def test_every_text_at_the_limit_is_accepted_in_every_form(character: str) -> None:
    count = 99_999 // len(character.encode())
    body = {**FIELDS, "prompt": character * count, "completion": "c"}
    limit = count * len(character.encode()) + 1
    for form in (body, json.dumps(body), json.dumps(body, ensure_ascii=False).encode()):
        assert parse_message(form, max_bytes=limit).completion == "c"
        assert refusal(form, max_bytes=limit - 1).reason is RejectionReason.TOO_LARGE


def test_the_default_limit_is_256_kib() -> None:
    assert DEFAULT_MAX_MESSAGE_BYTES == 262_144
    longest = "p" * (262_144 - len(COMPLETION))
    assert parse_message({**FIELDS, "prompt": longest}).prompt == longest
    assert refusal({**FIELDS, "prompt": longest + "p"}).reason is RejectionReason.TOO_LARGE


def test_a_huge_body_is_refused_before_it_is_parsed() -> None:
    assert refusal("[" * 200_000, max_bytes=100).reason is RejectionReason.TOO_LARGE


@pytest.mark.parametrize(
    "body", ["[]", '"pineapple"', "1", "-1.5", "null", "true", [], [FIELDS], "[1, 2]", b"[]"]
)
def test_not_a_message(body: Any) -> None:  # noqa: ANN401
    assert refusal(body).reason is RejectionReason.NOT_A_MESSAGE


@pytest.mark.parametrize(
    "version",
    [
        2,
        0,
        -1,
        "1",
        None,
        1.5,
        [],
        {},
        pytest.param(
            True,
        ),
    ],
)
def test_an_unsupported_version_is_refused(version: object) -> None:
    refused = refusal({**FIELDS, "schema_version": version})
    assert refused.reason is RejectionReason.UNSUPPORTED_VERSION
    assert "'schema_version'" in refused.detail


@pytest.mark.parametrize("name", FIELDS)
def test_a_missing_field_is_refused(name: str) -> None:
    refused = refusal(without(name))
    assert refused.reason is RejectionReason.MISSING_FIELD
    assert refused.detail == f"field '{name}': Field required: add it"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("priority", "'priority'"),
        ("two\nlines", r"'two\nlines'"),
        ("é", r"'\xe9'"),
        ("n" * 300, "'" + "n" * 80 + r"\u2026'"),
    ],
)
def test_an_unknown_field_is_refused(name: str, shown: str) -> None:
    refused = refusal({**FIELDS, name: 1})
    assert refused.reason is RejectionReason.UNKNOWN_FIELD
    assert refused.detail.startswith(f"field {shown}: ")
    assert refused.detail.endswith(": remove it, or put it under tags")


@pytest.mark.parametrize("name", ["prompt", "completion"])
def test_an_empty_text_is_refused(name: str) -> None:
    refused = refusal({**FIELDS, name: ""})
    assert refused.reason is RejectionReason.EMPTY_TEXT
    assert f"'{name}'" in refused.detail


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("message_id", 1),
        ("agent_id", None),
        ("prompt", 1),
        ("prompt", None),
        ("prompt", ["pineapple"]),
        ("completion", {"cucumber": 1}),
        ("completion", True),
        ("puzzle_id", True),
        ("puzzle_id", 1.0),
        ("puzzle_id", "1"),
        ("tags", []),
        ("tags", "pineapple"),
        ("tags", {"k": 1}),
        ("tags", {"k": None}),
        ("tags", {"k": {"deeper": "pineapple"}}),
    ],
)
def test_a_wrong_type_is_refused(name: str, value: object) -> None:
    refused = refusal({**FIELDS, name: value})
    assert refused.reason is RejectionReason.WRONG_TYPE
    assert f"field '{name}" in refused.detail


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("message_id", "agent_id")
            for value in ("", "a\n", "\na", "a b", "é", "x" * 129, "pineapple/", "a\x00", "ª")
        ),
        ("puzzle_id", -1),
        ("task", "two words"),
        ("task", ""),
        ("task", "t" * 129),
        ("category", "pineapple"),
        ("category", "CI_CD"),
        ("category", 1),
        ("created_at", "2026-01-31T12:00:00"),
        ("created_at", "2026-01-31"),
        ("created_at", "2026-13-31T12:00:00Z"),
        ("created_at", "2026-02-30T12:00:00Z"),
        ("created_at", "2026-01-31T12:00:00Z\n"),
        ("created_at", "٢٠٢٦-01-31T12:00:00Z"),
        ("created_at", "pineapple"),
        ("created_at", 1_769_860_800),
        ("created_at", "1769860800"),
        ("created_at", 1.5),
        ("created_at", False),
        ("tags", {f"key{index}": "" for index in range(17)}),
        ("tags", {"": "pineapple"}),
        ("tags", {"k" * 65: ""}),
        ("tags", {"k": "v" * 257}),
    ],
)
def test_an_invalid_value_is_refused(name: str, value: object) -> None:
    refused = refusal({**FIELDS, name: value})
    assert refused.reason is RejectionReason.INVALID_VALUE
    assert f"field '{name}" in refused.detail


def test_the_first_reason_in_the_list_represents_all() -> None:
    body = {**without("agent_id"), "schema_version": 2, "extra": 1, "prompt": "", "puzzle_id": "1"}
    refused = refusal(body)
    assert refused.reason is RejectionReason.UNSUPPORTED_VERSION
    told = [problem.split("'")[1] for problem in refused.detail.split("; ")]
    assert told == ["schema_version", "agent_id", "extra", "prompt", "puzzle_id"]


def test_only_the_first_five_of_a_thousand_problems_are_described() -> None:
    refused = refusal({**FIELDS, **{f"field{index}": 1 for index in range(1000)}})
    assert refused.detail.count("remove it") == 5
    assert refused.detail.endswith("; and 995 more")


# Laws.

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
GARBAGE = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NEARLY = st.fixed_dictionaries(
    {name: st.just(value) | GARBAGE for name, value in FIELDS.items()},
    optional={name: st.just(value) | GARBAGE for name, value in OPTIONAL.items()},
)


def judge(body: Any) -> SQEMessage | RejectionReason:  # noqa: ANN401
    try:
        return parse_message(body)
    except MessageRejected as refused:
        detail, reason = refused.detail, refused.reason
    assert detail.isprintable()
    return reason


@given(GARBAGE | NEARLY)
def test_any_json_is_a_message_or_refused_and_its_form_does_not_matter(value: Any) -> None:  # noqa: ANN401
    text = json.dumps(value)
    verdicts = [judge(text), judge(text.encode())]
    if not isinstance(value, str):
        verdicts.append(judge(value))
    assert all(verdict == verdicts[0] for verdict in verdicts)


@given(st.binary() | st.text(st.characters()))
def test_any_bytes_and_text_are_a_message_or_refused(body: bytes | str) -> None:
    assert isinstance(judge(body), SQEMessage | RejectionReason)


@given(st.binary(max_size=8), st.integers(0, 100), st.integers(0, 8))
def test_damaged_messages_are_a_message_or_refused(noise: bytes, at: int, cut: int) -> None:
    sound = json.dumps(FIELDS).encode()
    assert isinstance(judge(sound[:at] + noise + sound[at + cut :]), SQEMessage | RejectionReason)


# Messages that the client creates.


def test_create_fills_id_and_time() -> None:
    before = datetime.now(UTC)
    message = SQEMessage.create(agent_id="a", prompt="p", completion="c", tags={"k": "v"})
    assert message.schema_version == 1
    assert str(uuid.UUID(message.message_id)) == message.message_id
    assert message.created_at is not None
    assert before <= message.created_at <= datetime.now(UTC)
    assert message.created_at.utcoffset() == timedelta(0)
    assert (message.agent_id, message.prompt, message.completion) == ("a", "p", "c")
    assert message.tags == {"k": "v"}
    assert message.puzzle_id is None
    assert message.category is None
    assert parse_message(message.model_dump_json()) == message


def test_create_gives_every_message_its_own_id_and_accepts_one() -> None:
    ids = {
        SQEMessage.create(agent_id="a", prompt="p", completion="c").message_id for _ in range(50)
    }
    assert len(ids) == 50
    own = SQEMessage.create(agent_id="a", prompt="p", completion="c", message_id="mine")
    assert own.message_id == "mine"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"agent_id": "a b"}, RejectionReason.INVALID_VALUE),
        ({"prompt": ""}, RejectionReason.EMPTY_TEXT),
        ({"prompt": "\ud800"}, RejectionReason.INVALID_UNICODE),
        ({"priority": 1}, RejectionReason.UNKNOWN_FIELD),
        ({"puzzle_id": True}, RejectionReason.WRONG_TYPE),
        ({"created_at": datetime(2026, 1, 1)}, RejectionReason.INVALID_VALUE),  # noqa: DTZ001
    ],
)
def test_create_refuses_what_breaks_the_contract(
    fields: dict[str, Any], reason: RejectionReason
) -> None:
    with pytest.raises(MessageRejected) as caught:
        SQEMessage.create(**{"agent_id": "a", "prompt": "p", "completion": "c", **fields})
    assert caught.value.reason is reason


def test_messages_are_immutable() -> None:
    message = parse_message(FIELDS)
    with pytest.raises(ValueError, match="frozen"):
        message.prompt = "other"  # type: ignore[misc]
