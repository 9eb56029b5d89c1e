"""worker.delivery.options: an option that Celery sends is refused, honoured or harmless."""

import json
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from celery import signature

from schemas import MessageRejected, RejectionReason
from worker.broker.app import EVALUATE, create_app
from worker.delivery.envelope import EnvelopeRejected, read_envelope
from worker.delivery.options import check_time
from worker.delivery.tasks import message_of

SOON = datetime.now(UTC) + timedelta(hours=1)


def sent(**options: Any) -> bytes:  # noqa: ANN401
    """An item as Celery makes it of a task with `options`."""
    made = create_app("redis://localhost").amqp.as_task_v2("t1", EVALUATE, args=["text"], **options)
    item = {
        "body": json.dumps(made.body),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": made.headers,
        "properties": made.properties,
    }
    return json.dumps(item).encode()


def with_expires(value: object) -> bytes:
    item = json.loads(sent())
    item["headers"]["expires"] = value
    return json.dumps(item).encode()


def read(item: bytes) -> object:
    """The message of an item that is not refused."""
    return message_of(read_envelope(item, "q").body)


def other() -> Any:  # noqa: ANN401
    return signature("team.report", app=create_app("redis://localhost"))


@pytest.mark.parametrize(
    ("options", "named", "fix"),
    [
        ({"eta": SOON}, "'eta' or 'countdown'", "send the task when it is due"),
        ({"countdown": 60}, "'eta' or 'countdown'", "send the task when it is due"),
        ({"callbacks": [other()]}, "'link'", "then send the next task"),
        ({"errbacks": [other()]}, "'link_error'", "FAILURE with the reason"),
        ({"chain": [other()]}, "'chain'", "then send the next task"),
        ({"chord": other(), "group_id": "g1"}, "'chord'", "wait for its outcomes"),
    ],
)
def test_an_option_that_workers_do_not_support_is_refused_with_the_fix(
    options: dict[str, Any], named: str, fix: str
) -> None:
    with pytest.raises(MessageRejected) as caught:
        read(sent(**options))
    assert caught.value.reason is RejectionReason.UNSUPPORTED_OPTION
    assert caught.value.detail.startswith(f"workers do not support the option {named}: ")
    assert caught.value.detail.endswith(fix)


@pytest.mark.parametrize(
    "options",
    [
        {"group_id": "g1", "group_index": 0},
        {"retries": 3},
        {"stamped_headers": ["run"], "run": 42},
        {"replaced_task_nesting": 1, "root_id": "r1", "parent_id": "p1"},
        {"time_limit": 1, "soft_time_limit": 1, "shadow": "name"},
        {"callbacks": [], "errbacks": [], "chain": []},
    ],
)
def test_other_options_are_harmless(options: dict[str, Any]) -> None:
    assert read(sent(**options)) == "text"


@pytest.mark.parametrize(
    "value",
    [
        "2030-01-31T12:00:00+00:00",
        "2030-01-31T12:00:00Z",
        "2030-01-31T12:00:00",
        "2030-01-31T14:30:00+02:30",
        1_896_091_200,
        1_896_091_200.0,
    ],
)
def test_a_time_of_expiry_has_an_offset_or_is_utc(value: object) -> None:
    assert read_envelope(with_expires(value), "q").expires_at == datetime(
        2030, 1, 31, 12, tzinfo=UTC
    )


@pytest.mark.parametrize("value", [None, "", 0, False])
def test_a_task_without_a_time_of_expiry_does_not_expire(value: object) -> None:
    assert read_envelope(with_expires(value), "q").expires_at is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("tomorrow", "'tomorrow'"),
        ("2030-13-01T00:00:00", "'2030-13-01T00:00:00'"),
        ("x" * 1000, f"'{'x' * 40}'"),
        ("\ud800", r"'\ud800'"),
        (60, "a int"),
        (-1, "a int"),
        (True, "a bool"),
        (10**400, "a int"),
        (float("inf"), "a float"),
        (float("nan"), "a float"),
        (1e300, "a float"),
        ([2030], "a list"),
        ({"in": 60}, "a dict"),
    ],
)
def test_an_unusable_time_of_expiry_refuses_the_task(value: object, shown: str) -> None:
    with pytest.raises(EnvelopeRejected) as caught:
        read_envelope(with_expires(value), "q")
    rejected = caught.value
    assert (rejected.reason, rejected.task_id) == (RejectionReason.UNSUPPORTED_OPTION, "t1")
    assert rejected.detail.startswith(f"the header 'expires' is {shown}: give a time in ISO 8601")
    assert not rejected.unexpected


@pytest.mark.parametrize(
    "sender", [{}, {"timezone": timezone(timedelta(hours=-7))}], ids=["UTC", "elsewhere"]
)
def test_a_number_of_seconds_runs_from_the_sending(sender: dict[str, Any]) -> None:
    expires = read_envelope(sent(expires=60, **sender), "q").expires_at
    assert expires is not None
    assert expires.timestamp() == pytest.approx(time.time() + 60, abs=5)


def test_what_has_expired_is_refused_at_its_time_and_not_before() -> None:
    check_time(None)
    check_time(SOON)
    with pytest.raises(MessageRejected, match=r"expired 3\.\d s before its turn") as caught:
        check_time(datetime.now(UTC) - timedelta(seconds=3))
    assert caught.value.reason is RejectionReason.EXPIRED


@pytest.mark.parametrize("edge", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_the_first_and_the_last_time_are_compared_as_others(edge: str) -> None:
    expires = read_envelope(with_expires(edge), "q").expires_at
    if edge.startswith("9999"):
        check_time(expires)
    else:
        with pytest.raises(MessageRejected, match="expired"):
            check_time(expires)
