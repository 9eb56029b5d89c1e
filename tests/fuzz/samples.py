"""Sound inputs, as agents, Celery and operators write them.

Knows the forms of messages, items, outcomes and URLs; nothing of how they go wrong.
"""

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from schemas import Rejection, RejectionReason, SQEMessage
from tests.fuzz.mutation import SECRET, Mutator
from tests.support import stubs
from worker.broker.app import ENQUEUED_AT, EVALUATE, EVALUATE_BATCH
from worker.broker.keys import LIVE_QUEUE
from worker.client import tasks

TEXTS = (
    "solve",
    "Plan the regression test of the log-in, step by step.",
    "Prüfe 3,5 % der Fälle\n\tund berichte 🙂",
    SECRET * 40,
    "word " * 200,
)


NOW = 1769860800.5
"""The time in every sample, so that equal seeds make equal cases."""


EXPIRES = (None, None, None, "2999-01-01T00:00:00+02:00", "2999-01-01T00:00:00", 32503680000)
"""Times far ahead, as Celery and other producers write them."""


def message(mutator: Mutator) -> dict[str, Any]:
    """A message's fields; its id is unique."""
    choose = mutator.random.choice
    optional = {
        "puzzle_id": mutator.random.randrange(1000),
        "category": "other",
        "created_at": "2026-01-31T12:00:00+01:00",
        "tags": {"team": "a", "run": "7"},
    }
    return {
        "schema_version": 1,
        "message_id": f"m-{mutator.random.getrandbits(64):x}",
        "agent_id": "tester",
        "prompt": choose(TEXTS),
        "completion": choose(TEXTS),
        **{name: value for name, value in optional.items() if mutator.random.random() < 0.3},
    }


def arguments(mutator: Mutator, messages: list[Any]) -> list[Any]:
    """The arguments of a task with these messages (dictionaries or texts)."""
    argument, name = (messages, "messages") if is_batch(messages) else (messages[0], "message")
    if mutator.random.random() < 0.3:
        return [[], {name: argument}, {}]
    return [[argument], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]


def is_batch(messages: list[Any]) -> bool:
    return len(messages) != 1


def envelope(mutator: Mutator, body: str | bytes, task: str) -> dict[str, Any]:
    """The envelope that Celery (base64) or the client (text) puts around a task's arguments."""
    task_id = f"t-{mutator.random.getrandbits(64):x}"
    if isinstance(body, str) and mutator.random.random() < 0.5:
        text, encoding = body, {}
    else:
        raw = body if isinstance(body, bytes) else body.encode(errors="surrogatepass")
        text, encoding = base64.b64encode(raw).decode(), {"body_encoding": "base64"}
    return {
        "body": text,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
            "lang": "py",
            "task": task,
            "id": task_id,
            "eta": None,
            "expires": mutator.random.choice(EXPIRES),
            "retries": 0,
            "timelimit": [None, None],
            "argsrepr": "(...)",
            "ignore_result": mutator.random.random() < 0.5,
            ENQUEUED_AT: NOW,
        },
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": LIVE_QUEUE},
            "delivery_tag": task_id,
            **encoding,
        },
    }


def task(mutator: Mutator) -> dict[str, Any]:
    """A sound envelope with one message or a batch."""
    count = mutator.random.choice((1, 1, 1, 0, 2, 5))
    messages: list[Any] = [message(mutator) for _ in range(count)]
    if mutator.random.random() < 0.5:
        messages = list(map(json.dumps, messages))
    name = EVALUATE_BATCH if is_batch(messages) else EVALUATE
    return envelope(mutator, json.dumps(arguments(mutator, messages)), name)


def item(mutator: Mutator) -> bytes:
    """A sound item."""
    if mutator.random.random() < 0.3:
        sent = SQEMessage.model_validate(message(mutator), strict=False)
        made = json.loads(tasks.evaluate(sent, LIVE_QUEUE).item)
        made["headers"][ENQUEUED_AT] = NOW
        return json.dumps(made).encode()
    return json.dumps(task(mutator)).encode()


VERDICT: Mapping[str, Any] = (
    stubs.verdict(stubs.message(message_id="m-1"))
    .model_copy(update={"evaluated_at": datetime(2026, 1, 31, tzinfo=UTC)})
    .model_dump(mode="json")
)

REJECTION: Mapping[str, Any] = Rejection(
    message_id="m-1", reason=RejectionReason.NOT_JSON, detail="not JSON: send JSON"
).model_dump(mode="json")

EXAMPLE: Mapping[str, Any] = (
    Converter(ConversionConfig()).convert("plan a test", "done").model_dump(mode="json")
)


def outcome(mutator: Mutator) -> dict[str, Any]:
    """A verdict or a rejection."""
    return dict(mutator.random.choice((VERDICT, REJECTION)))


def line(mutator: Mutator) -> dict[str, Any]:
    """The fields of a line of a data file: a message, a pair or an example."""
    sent = message(mutator)
    pair = {"prompt": sent["prompt"], "completion": sent["completion"]}
    return dict(mutator.random.choice((sent, pair, {**pair, "alternative": True}, EXAMPLE)))
