"""Any bad input in a queue becomes one dead letter with its reason, and the worker goes on."""

import base64
import hashlib
import json
import math
import random
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from schemas import DeadLetter, RejectionReason, SQEMessage, Verdict
from tests.support.celery_results import refusal
from tests.support.permissions import limited_url, permit
from tests.support.processes import STUB, Worker, wait_for
from tests.support.stubs import message
from worker.broker.app import EVALUATE, EVALUATE_BATCH, create_app
from worker.broker.backlog import OTHER
from worker.broker.keys import (
    BACKFILL_QUEUE,
    DEAD_LETTERS,
    LIVE_QUEUE,
    NO_NAMESPACE,
    UNACKED,
    UNACKED_INDEX,
    delivery_tag,
)
from worker.broker.streams import KEPT_BYTES, read_dead_letters
from worker.client import Client
from worker.monitor.reading import Reader

if TYPE_CHECKING:
    from tests.conftest import Site

SOUND: dict[str, Any] = {
    "schema_version": 1,
    "message_id": "bad-1",
    "agent_id": "tester",
    "prompt": "test",
    "completion": "done",
}


def changed(**fields: Any) -> str:  # noqa: ANN401
    fields = {**SOUND, **fields}
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


def new_letters(site: "Site", before: int, count: int = 1) -> list[DeadLetter]:
    """Wait for `count` dead letters more than `before`; the worker has to be ready afterwards."""
    wait_for(lambda: site.store.xlen(DEAD_LETTERS) >= before + count, "a dead letter")
    wait_for(lambda: not site.store.exists(UNACKED, LIVE_QUEUE), "acknowledged")
    site.client.result(site.client.submit(message()))
    assert site.worker.is_ready()
    assert site.store.xlen(DEAD_LETTERS) == before + count
    return list(read_dead_letters(site.store))[-count:]


def is_beginning(letter: DeadLetter, sent: bytes) -> bool:
    """Whether the dead letter holds the first 64 KiB of a longer body, with its length and hash."""
    original = (len(sent), hashlib.sha1(sent, usedforsecurity=False).hexdigest())
    assert (letter.original_bytes, letter.original_sha1) == original
    return len(sent) > KEPT_BYTES and letter.body == sent[:KEPT_BYTES]


MESSAGES = [
    ("not json", RejectionReason.NOT_JSON),
    ("", RejectionReason.NOT_JSON),
    (changed(prompt="\ud800"), RejectionReason.INVALID_UNICODE),
    ("\ud800", RejectionReason.INVALID_UNICODE),
    ("[" * 5000, RejectionReason.TOO_DEEP),
    (changed(tags="[" * 2, completion="x" * 300_000), RejectionReason.WRONG_TYPE),
    (changed(completion="x" * 300_000), RejectionReason.TOO_LARGE),
    (changed(completion="x" * 3_000_000), RejectionReason.TOO_LARGE),
    ("[]", RejectionReason.NOT_A_MESSAGE),
    ("7", RejectionReason.NOT_A_MESSAGE),
    (7, RejectionReason.NOT_A_MESSAGE),
    (None, RejectionReason.NOT_A_MESSAGE),
    ([SOUND], RejectionReason.NOT_A_MESSAGE),
    (changed(schema_version=2), RejectionReason.UNSUPPORTED_VERSION),
    (changed(agent_id=...), RejectionReason.MISSING_FIELD),
    (changed(extra=1), RejectionReason.UNKNOWN_FIELD),
    (changed(prompt=""), RejectionReason.EMPTY_TEXT),
    (changed(prompt=5), RejectionReason.WRONG_TYPE),
    (changed(agent_id="no spaces"), RejectionReason.INVALID_VALUE),
    (changed(created_at="yesterday"), RejectionReason.INVALID_VALUE),
    (changed(puzzle_id=-1), RejectionReason.INVALID_VALUE),
    (changed(puzzle_id=1000), RejectionReason.PUZZLE_OUT_OF_RANGE),
    (changed(puzzle_id=10**400), RejectionReason.PUZZLE_OUT_OF_RANGE),
    ({**SOUND, "prompt": {"__type__": "bytes", "__value__": "x"}}, RejectionReason.WRONG_TYPE),
]


@pytest.mark.parametrize(("body", "reason"), MESSAGES, ids=range(len(MESSAGES)))
def test_a_bad_message_is_a_dead_letter_and_an_answer(
    site: "Site",
    body: Any,  # noqa: ANN401
    reason: RejectionReason,
) -> None:
    before = site.store.xlen(DEAD_LETTERS)
    counted = site.worker.metrics()[f"rejected_total{{reason={reason}}}"]
    why, detail = refusal(create_app(site.redis_url).send_task(EVALUATE, args=[body]))
    assert why == reason
    (letter,) = new_letters(site, before)
    assert (letter.reason, letter.detail) == (reason, detail)
    sent = (
        body.encode(errors="surrogatepass") if isinstance(body, str) else json.dumps(body).encode()
    )
    if letter.original_bytes is None:
        assert letter.body.replace(b" ", b"") == sent.replace(b" ", b"")
    else:
        assert is_beginning(letter, sent)
    assert letter.queue == "sqe.evaluate"
    assert site.worker.metrics()[f"rejected_total{{reason={reason}}}"] == counted + 1


ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    (("a", "b"), {}),
    (("a",), {"more": 1}),
    ((), {"other": "a"}),
]


@pytest.mark.parametrize("task", [EVALUATE, EVALUATE_BATCH])
@pytest.mark.parametrize(("args", "kwargs"), ARGUMENTS)
def test_wrong_arguments_are_a_dead_letter(
    site: "Site", task: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    before = site.store.xlen(DEAD_LETTERS)
    reason, detail = refusal(create_app(site.redis_url).send_task(task, args=args, kwargs=kwargs))
    assert reason == "not_a_message"
    assert "takes one argument" in detail
    new_letters(site, before)


def test_a_batch_over_256_is_one_dead_letter_with_all_of_it(site: "Site") -> None:
    before = site.store.xlen(DEAD_LETTERS)
    batch = [message().model_dump_json(exclude_none=True) for _ in range(257)]
    _, detail = refusal(create_app(site.redis_url).send_task(EVALUATE_BATCH, args=[batch]))
    assert "a batch may have 256" in detail
    (letter,) = new_letters(site, before)
    assert json.loads(letter.body)[0] == [batch]


def test_bad_messages_in_a_batch_do_not_stop_the_others(site: "Site") -> None:
    before = site.store.xlen(DEAD_LETTERS)
    good = [message() for _ in range(3)]
    batch: list[object] = [
        "no json",
        *(each.model_dump_json() for each in good),
        None,
        {},
        "[" * 5000,
    ]
    answer = create_app(site.redis_url).send_task(EVALUATE_BATCH, args=[batch]).get(timeout=30)
    assert [outcome.get("reason", "verdict") for outcome in answer] == [
        "not_json",
        *(["verdict"] * 3),
        "not_a_message",
        "missing_field",
        "too_deep",
    ]
    new_letters(site, before, 4)


ITEMS = [
    b"garbage",
    b"[]",
    b"{}",
    b"null",
    b"\x80\x04\x95 a pickle",
    b"\xff\xfe invalid UTF-8",
    b"[" * 200_000,
    b'{"properties":' * 100_000,
    b"x" * 5_000_000,
    b"x" * 20_000_000,
    b'{"body": "", "headers": {"task": []}, "properties": {}}',
    b'{"body": 7, "headers": {"task": "sqe.evaluate", "id": "x"}, "properties": {}}',
]


@pytest.mark.parametrize("item", ITEMS, ids=range(len(ITEMS)))
def test_an_item_that_is_no_task_is_a_dead_letter(site: "Site", item: bytes) -> None:
    before = site.store.xlen(DEAD_LETTERS)
    site.store.lpush(LIVE_QUEUE, item)
    (letter,) = new_letters(site, before)
    assert letter.body == item or is_beginning(letter, item)


DIGITS = "9" * 5000
"""More digits than Python converts to an integer."""


def task_item(argument: str, **headers: str) -> bytes:
    """An item as a producer in any language may write it; the arguments are JSON texts."""
    body = base64.b64encode(f"[[{argument}], {{}}, {{}}]".encode()).decode()
    texts = {"task": json.dumps(EVALUATE), "id": json.dumps(str(uuid.uuid4())), **headers}
    written = ", ".join(f"{json.dumps(key)}: {text}" for key, text in texts.items())
    return (
        f'{{"body": "{body}", "content-type": "application/json", "headers": {{{written}}}, '
        f'"properties": {{"body_encoding": "base64", "correlation_id": {DIGITS}}}}}'
    ).encode()


TIMES = [
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e308", "-1e308"),
    *(str(10**400), str(-(10**400)), DIGITS, f"-{DIGITS}"),
    *("0", "-1", "true", '"now"', "null", "[]", "{}", "[" * 500 + "]" * 500),
    *(str(time.time() * 1000), str(time.time() + 86_400), str(time.time() - 86_400 * 365)),
]

NEEDLESS = [
    {key: text}
    for key in ("group", "retries", "timelimit")
    for text in (DIGITS, "NaN", str(10**400))
]

NO_TASKS = [
    *ITEMS,
    *(task_item("{}", id=text) for text in (DIGITS, "NaN", str(10**400), r'"\ud800"')),
    *(task_item("{}", task=text) for text in (DIGITS, r'"\ud800"', f'"{"x" * 100_000}"')),
    *(
        task_item("{}", **{key: text})
        for key in ("eta", "expires")
        for text in (DIGITS, "NaN", str(10**400))
    ),
    task_item("{}", retries="[" * 200_000),
    b'{"body": ' + DIGITS.encode() + b', "headers": {}, "properties": {}}',
]


@pytest.mark.parametrize("way", ["live", "backfill", "restored"])
def test_hostile_items_end_no_worker_and_distort_no_metric(site: "Site", way: str) -> None:
    before = site.store.xlen(DEAD_LETTERS)
    headers = [*({"sqe_enqueued_at": text} for text in TIMES), *NEEDLESS]
    sound = [message() for _ in headers]
    items = [
        *NO_TASKS,
        *(
            task_item(each.model_dump_json(), **changed)
            for each, changed in zip(sound, headers, strict=True)
        ),
    ]
    if way == "restored":  # left behind by a worker that died long ago
        tags = [delivery_tag(LIVE_QUEUE, f"dead-{number}") for number in range(len(items))]
        site.store.hset(UNACKED, mapping=dict(zip(tags, items, strict=True)))
        site.store.zadd(UNACKED_INDEX, dict.fromkeys(tags, 1.0))
    else:
        site.store.lpush(LIVE_QUEUE if way == "live" else BACKFILL_QUEUE, *items)
    good = site.client.result(site.client.submit(message()))
    assert good.timings.queue is not None

    for verdict in site.client.results(each.message_id for each in sound):
        assert isinstance(verdict, Verdict)
        assert verdict.timings.queue is not None, "from created_at"
        assert 0 <= verdict.timings.queue <= verdict.timings.total < 60
    letters = new_letters(site, before, len(NO_TASKS))
    assert sorted(letter.body for letter in letters) == sorted(
        item[:KEPT_BYTES] for item in NO_TASKS
    )
    metrics = site.worker.metrics()
    assert all(map(math.isfinite, metrics.values()))
    assert metrics["errors_total{kind=internal}"] == 0
    assert site.worker.process.poll() is None


def test_an_implausible_time_of_a_producer_is_no_time_in_the_queue(site: "Site") -> None:
    sent = SQEMessage(**{**SOUND, "message_id": str(uuid.uuid4()), "created_at": None})
    item = task_item(sent.model_dump_json(), sqe_enqueued_at=str(10**400))
    site.store.lpush(LIVE_QUEUE, item)
    verdict = site.client.result(sent.message_id)
    assert verdict.timings.queue is None
    assert verdict.timings.total < 60


def test_hostile_numbers_in_a_batch_do_not_stop_the_other_messages(site: "Site") -> None:
    before = site.store.xlen(DEAD_LETTERS)
    good = message()
    batch = ", ".join(
        [
            *(
                json.dumps(SOUND)[:-1] + f', "puzzle_id": {number}}}'
                for number in (DIGITS, "1e999")
            ),
            DIGITS,
            good.model_dump_json(exclude_none=True),
        ]
    )
    item = task_item(f"[{batch}]", task=json.dumps(EVALUATE_BATCH), sqe_enqueued_at=str(10**400))
    site.store.lpush(BACKFILL_QUEUE, item)
    verdict = site.client.result(good.message_id)
    assert verdict.timings.queue is not None
    reasons = sorted(letter.reason for letter in new_letters(site, before, 3))
    assert reasons == ["not_a_message", "wrong_type", "wrong_type"]
    assert all(map(math.isfinite, site.worker.metrics().values()))


def test_foreign_entries_of_the_unacknowledged_index_are_one_series(site: "Site") -> None:
    random_ = random.Random(0)
    foreign = {
        *(random_.randbytes(length) for length in range(200)),
        *(f"queue-{number}/1".encode() for number in range(1000)),
        *(b"\xff" * length + b"/1" for length in (1, 1000, 1_000_000)),
        b'sqe.evaluate"} 1\nsqe_hrm_made_up 1\n/1',
    }
    read = Reader(site.store, NO_NAMESPACE)
    before = read()
    assert before is not None
    # Delivered in the far future, so that no worker puts them back meanwhile.
    site.store.zadd(UNACKED_INDEX, dict.fromkeys(foreign, float("inf")))
    after = read()
    assert after is not None
    assert after.unacked.keys() - before.unacked.keys() == {OTHER}
    assert after.unacked[OTHER] == len(foreign)
    assert after.stalest[OTHER] == 0

    # Left behind by a dead worker; there is no item to deliver again.
    site.store.zadd(UNACKED_INDEX, dict.fromkeys(foreign, 1.0))
    wait_for(lambda: not site.store.exists(UNACKED_INDEX), "all of them handled")
    site.client.result(site.client.submit(message()))
    assert site.worker.is_ready()


def test_an_item_under_a_foreign_tag_is_evaluated_or_a_dead_letter(site: "Site") -> None:
    before = site.store.xlen(DEAD_LETTERS)
    site.store.set("foreign-string", "not a list")
    tags = [b"nobody-reads-this/1", b"foreign-string/1", DEAD_LETTERS.encode() + b"/1", b"\xff/1"]
    sound = [message() for _ in tags]
    garbage = [b"garbage under " + tag for tag in tags]
    items: dict[Any, Any] = {
        **{
            tag + b"-sound": task_item(each.model_dump_json())
            for tag, each in zip(tags, sound, strict=True)
        },
        **{tag + b"-garbage": item for tag, item in zip(tags, garbage, strict=True)},
    }
    # Left behind by a dead worker.
    site.store.hset(UNACKED, mapping=items)
    site.store.zadd(UNACKED_INDEX, dict.fromkeys(items, 1.0))
    ids = [each.message_id for each in sound]
    assert {verdict.message_id for verdict in site.client.results(ids)} == set(ids)
    letters = new_letters(site, before, len(garbage))
    assert sorted(letter.body for letter in letters) == sorted(garbage)
    assert {letter.queue for letter in letters} == {LIVE_QUEUE}
    assert not site.store.exists(UNACKED_INDEX, "nobody-reads-this")
    assert site.store.get("foreign-string") == b"not a list"


def test_a_flood_of_garbage_becomes_dead_letters(site: "Site") -> None:
    before = site.store.xlen(DEAD_LETTERS)
    site.store.lpush(LIVE_QUEUE, *(f"garbage {number}".encode() for number in range(300)))
    assert {letter.reason for letter in new_letters(site, before, 300)} == {
        RejectionReason.NOT_JSON
    }


def test_an_unknown_task_is_answered_with_its_rejection(site: "Site") -> None:
    before = site.store.xlen(DEAD_LETTERS)
    app = create_app(site.redis_url)
    for name in ("celery.chord", "celery.backend_cleanup", "shutdown", "sqe.Evaluate"):
        reason, _ = refusal(app.send_task(name, args=[["text"]]))
        assert reason == "unknown_task"
    new_letters(site, before, 4)


@pytest.mark.parametrize("serializer", ["pickle", "yaml"])
def test_other_serializers_are_never_read(site: "Site", serializer: str) -> None:
    before = site.store.xlen(DEAD_LETTERS)
    app = create_app(site.redis_url)
    reason, detail = refusal(app.send_task(EVALUATE, args=[changed()], serializer=serializer))
    assert reason == "not_json"
    assert "send application/json" in detail
    new_letters(site, before)


OPTIONS: list[dict[str, Any]] = [
    {"expires": 10**6},
    {"headers": {"timelimit": 5, "retries": "x", "group": []}},
    {"priority": 9},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["expires", "broken", "priority"])
def test_options_that_need_nothing_of_a_worker_do_no_harm(
    site: "Site", options: dict[str, Any]
) -> None:
    sent = message(message_id=str(uuid.uuid4()))
    before = site.store.xlen(DEAD_LETTERS)
    create_app(site.redis_url).send_task(EVALUATE, args=[sent.model_dump_json()], **options)
    assert site.client.result(sent.message_id).message_id == sent.message_id
    assert site.store.xlen(DEAD_LETTERS) == before


UNSUPPORTED: list[dict[str, Any]] = [
    {"countdown": 10**6},
    {"headers": {"eta": "soon"}},
    {"headers": {"expires": ["soon"]}},
    {"link": create_app("redis://localhost").signature("other.task")},
]


@pytest.mark.parametrize("options", UNSUPPORTED, ids=["countdown", "eta", "expires", "link"])
def test_options_that_workers_do_not_support_are_a_dead_letter(
    site: "Site", options: dict[str, Any]
) -> None:
    before = site.store.xlen(DEAD_LETTERS)
    app = create_app(site.redis_url)
    reason, _ = refusal(app.send_task(EVALUATE, args=[message().model_dump_json()], **options))
    assert reason == "unsupported_option"
    new_letters(site, before)


def test_no_text_of_a_message_is_in_the_log(site: "Site") -> None:
    before = site.store.xlen(DEAD_LETTERS)
    app = create_app(site.redis_url)
    app.send_task(EVALUATE, args=['{"prompt": "hush-hush'])
    app.send_task(EVALUATE, args=[changed(prompt="hush-hush", extra="hush-hush")])
    site.client.result(site.client.submit(message("hush-hush")))
    new_letters(site, before, 2)
    assert "hush-hush" not in site.worker.log.read_text()
    assert "hush-hush" not in site.worker.get("/metrics")[1]


def test_a_dead_letter_that_cannot_be_stored_holds_nothing_else_up(
    tmp_path: Path, redis_url: str, client: Client, store: redis.Redis
) -> None:
    limited = limited_url(store, redis_url)
    with Worker.start(STUB, tmp_path, limited, "--slots", "2") as worker:
        worker.wait_until_ready()
        permit(store, "-xadd")
        store.lpush(LIVE_QUEUE, "no task")
        wait_for(lambda: store.hlen(UNACKED) == 1, "taken")
        assert client.result(client.submit(message()), timeout=5).solved
        wait_for(lambda: "cannot store outcomes" in worker.get("/readyz")[1], "not ready")
        permit(store, "+xadd")
        wait_for(lambda: not store.exists(UNACKED), "acknowledged")
        assert store.xlen(DEAD_LETTERS) == 1
