"""worker.broker.streams against a real Redis: what is written is what is read."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from jsonschema import Draft202012Validator

from schemas import DeadLetter, RejectionReason
from schemas.publish import json_schema
from tests.support.stubs import message, verdict
from worker.broker.keys import DEAD_LETTERS, FAILURES
from worker.broker.streams import (
    PAGE,
    Failure,
    StreamEntryError,
    entries_added,
    fields_of,
    read_dead_letters,
    read_failures,
    stream_of,
)

LETTER = DeadLetter(
    message_id="m1",
    reason=RejectionReason.NOT_JSON,
    detail="why",
    body=b"\xff body",
    queue="sqe.evaluate",
    worker="w:1",
    rejected_at=datetime(2026, 1, 31, 12, tzinfo=UTC),
)


def failure(prompt: str = "fail") -> Failure:
    sent = message(prompt)
    return Failure(verdict=verdict(sent), message=sent)


def add(store: redis.Redis, stream: str, fields: Mapping[Any, Any]) -> None:
    store.xadd(stream, dict(fields))


def write(store: redis.Redis, record: Failure | DeadLetter) -> None:
    add(store, stream_of(record), fields_of(record))


def only_entry(store: redis.Redis, stream: str) -> dict[bytes, bytes]:
    entries: Any = store.xrange(stream)
    ((_, fields),) = entries
    return dict(fields)


@pytest.mark.parametrize("letter", [LETTER, LETTER.model_copy(update={"message_id": None})])
def test_a_dead_letter_is_read_as_it_was_written(store: redis.Redis, letter: DeadLetter) -> None:
    write(store, letter)
    assert list(read_dead_letters(store)) == [letter]


def test_a_failure_is_read_as_it_was_written(store: redis.Redis) -> None:
    written = failure()
    write(store, written)
    assert list(read_failures(store)) == [written]


def test_a_dead_letters_entry_has_flat_fields_and_the_raw_bytes(store: redis.Redis) -> None:
    write(store, LETTER)
    assert only_entry(store, DEAD_LETTERS) == {
        b"reason": b"not_json",
        b"detail": b"why",
        b"message_id": b"m1",
        b"queue": b"sqe.evaluate",
        b"worker": b"w:1",
        b"rejected_at": b"2026-01-31T12:00:00+00:00",
        b"body": b"\xff body",
    }


def test_a_failures_entry_names_what_an_operator_looks_for(store: redis.Redis) -> None:
    written = failure()
    write(store, written)
    fields = only_entry(store, FAILURES)
    assert json.loads(fields.pop(b"verdict"))["message_id"] == written.message.message_id
    assert json.loads(fields.pop(b"message"))["prompt"] == "fail"
    assert fields == {
        b"message_id": written.message.message_id.encode(),
        b"agent_id": b"tester",
        b"checkpoint": b"stub",
        b"failure_pattern": b"near_miss",
        b"text": b"different",
        b"category": b"other",
        b"evaluated_at": written.verdict.evaluated_at.isoformat().encode(),
    }


def test_a_dead_letter_that_was_read_fits_the_published_schema(store: redis.Redis) -> None:
    write(store, LETTER)
    (letter,) = read_dead_letters(store)
    schema = Draft202012Validator(json.loads(json_schema("dead_letter")))
    schema.validate(json.loads(letter.model_dump_json()))


def test_a_stream_longer_than_a_page_is_read_whole_and_in_order(store: redis.Redis) -> None:
    count = 2 * PAGE + 1
    for number in range(count):
        write(store, LETTER.model_copy(update={"detail": str(number)}))
    assert [letter.detail for letter in read_dead_letters(store)] == list(map(str, range(count)))


def test_entries_are_counted_after_they_were_trimmed(store: redis.Redis) -> None:
    assert entries_added(store, DEAD_LETTERS) == 0
    for _ in range(3):
        write(store, LETTER)
    store.xtrim(DEAD_LETTERS, 1, approximate=False)
    assert entries_added(store, DEAD_LETTERS) == 3


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"reason": "bad luck"}, "reason: Input should be 'not_json', "),
        ({"worker": b"\xff"}, "can't decode byte 0xff"),
        ({"more": "x"}, "unknown field 'more'"),
        ({"body": None}, "no field 'body'"),
    ],
)
def test_an_entry_of_somebody_else_is_named_with_its_problem_and_the_fix(
    store: redis.Redis, changes: dict[str, str | bytes | None], problem: str
) -> None:
    fields = {**fields_of(LETTER), **changes}
    add(store, DEAD_LETTERS, {name: value for name, value in fields.items() if value is not None})
    with pytest.raises(StreamEntryError) as caught:
        list(read_dead_letters(store))
    assert problem in str(caught.value)
    assert str(caught.value).startswith(
        f"entry {caught.value.args[0].split()[1]} of {DEAD_LETTERS}"
    )
    assert f"remove it with XDEL {DEAD_LETTERS} " in str(caught.value)
