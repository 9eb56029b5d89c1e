"""worker.process.remote: questions are answered, commands are not, and events tell of tasks."""

# kombu's methods have no types.
# mypy: disallow-untyped-calls=False

import contextlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery
from kombu.entity import Exchange
from kombu.messaging import Consumer, Producer

from tests.support.processes import DEADLINE
from worker.broker.app import EVALUATE, EVALUATE_BATCH
from worker.delivery.envelope import Envelope
from worker.delivery.job import Ending
from worker.process import remote
from worker.process.remote import Remote
from worker.settings import Settings

NAME = "host:1"
SETTINGS = Settings(redis_url="redis://:secret@db", celery_events="on")


def task(task_id: str, name: str = EVALUATE, expires_at: datetime | None = None) -> Envelope:
    body = b'[["hush-hush"], {}, {}]'
    return Envelope(name, task_id, "sqe.evaluate", body, None, True, expires_at=expires_at)


class World:
    """A worker's `Remote` on a broker in this process, and who asks and listens."""

    def __init__(self) -> None:
        self.app = Celery(broker="memory://", set_as_current=False)
        self.app.conf.broker_transport_options = {"polling_interval": 0.01}
        self.remote = Remote(
            self.app, name=NAME, queues=("sqe.evaluate",), slots=3, settings=SETTINGS
        )
        self.events: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with self.app.connection() as self.connection:
            receiver = self.app.events.Receiver(self.connection, handlers={"*": self.events.append})
            with Consumer(self.connection, [receiver.queue], callbacks=[receiver._receive]):
                self.remote.start()
                self.hear("worker-online")
                yield
                self.remote.stop(DEADLINE)
                self.hear("worker-offline")

    def hear(self, kind: str) -> dict[str, Any]:
        """The first event of this kind; waits for it."""
        end = time.monotonic() + DEADLINE
        while True:
            for event in self.events:
                if event["type"] == kind:
                    return event
            self.connection.drain_events(timeout=end - time.monotonic())

    def ask(self, question: str) -> Any:  # noqa: ANN401
        inspect = self.app.control.inspect(destination=[NAME], timeout=DEADLINE)
        return inspect._request(question)[NAME]

    def request(self, body: object) -> None:
        """Send a request as anyone could write it."""
        to = Exchange("celery.pidbox", type="fanout", durable=False)
        with self.app.connection() as connection:
            Producer(connection, exchange=to, serializer="json").publish(body)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FLUSH_SECONDS", 0.01)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    with world.running():
        yield world


def test_a_task_in_hand_is_active_until_it_ends(world: World) -> None:
    one, many = task("t1"), task("t2", EVALUATE_BATCH)
    world.remote.accepted(one)
    world.remote.accepted(many)
    active = world.ask("active")
    assert [(each["id"], each["name"]) for each in active] == [
        ("t1", EVALUATE),
        ("t2", EVALUATE_BATCH),
    ]
    assert "hush-hush" not in json.dumps(active)
    world.remote.finished(one, Ending.ANSWERED)
    world.remote.finished(many, Ending.GIVEN_BACK)
    assert world.ask("active") == []
    assert world.ask("stats")["total"] == {EVALUATE: 1, EVALUATE_BATCH: 0}


def test_the_same_task_twice_in_hand_is_two(world: World) -> None:
    first, second = task("t1"), task("t1")
    world.remote.accepted(first)
    world.remote.accepted(second)
    world.remote.finished(first, Ending.ANSWERED)
    assert [each["id"] for each in world.ask("active")] == ["t1"]


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        (Ending.ANSWERED, "task-succeeded"),
        (Ending.REFUSED, "task-failed"),
        (Ending.GIVEN_BACK, "task-rejected"),
    ],
)
def test_events_tell_what_happens_to_a_task_and_no_text(
    world: World, ending: Ending, kind: str
) -> None:
    envelope = task("t1", expires_at=datetime(2030, 1, 31, tzinfo=UTC))
    world.remote.accepted(envelope)
    world.remote.finished(envelope, ending)
    last = world.hear(kind)
    kinds = [event["type"] for event in world.events if event["type"].startswith("task")]
    assert kinds == ["task-received", "task-started", kind]
    received = world.hear("task-received")
    assert (received["uuid"], received["name"]) == ("t1", EVALUATE)
    assert received["expires"] == "2030-01-31T00:00:00+00:00"
    assert received["timestamp"] <= last["timestamp"]
    assert {event["hostname"] for event in world.events} == {NAME}
    assert "hush-hush" not in str(world.events)


def test_a_heartbeat_says_how_much_is_in_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "BEAT_SECONDS", 0.01)
    world = World()
    world.remote.accepted(task("t1"))
    with world.running():
        assert world.hear("worker-heartbeat")["active"] == 1


def test_no_answer_shows_a_password(world: World) -> None:
    for question in ("stats", "conf"):
        assert "secret" not in json.dumps(world.ask(question))


@pytest.mark.parametrize("command", ["shutdown", "pool_restart", "rate_limit", "revoke", "report"])
def test_a_command_is_not_taken(world: World, command: str) -> None:
    assert "not a question that workers answer" in world.ask(command)["error"]


REPLY = {"exchange": "x", "routing_key": "y"}

HOSTILE: list[object] = [
    7,
    [],
    "ping",
    None,
    {},
    {"method": "shutdown"},
    {"method": "ping", "reply_to": 7},
    {"method": "ping", "reply_to": {}, "destination": 7},
    {"method": "ping", "reply_to": {"routing_key": {}}, "ticket": []},
    {"method": ["ping"], "reply_to": REPLY, "arguments": {"x": 1}},
    {"method": {}, "reply_to": REPLY, "pattern": "(", "matcher": "pcre"},
]


def test_a_request_of_any_form_leaves_the_worker_answering(world: World) -> None:
    for body in HOSTILE:
        world.request(body)
    assert world.ask("ping") == {"ok": "pong"}


def test_a_question_to_another_worker_is_not_answered(world: World) -> None:
    others = world.app.control.inspect(destination=["host:2"], timeout=0.01)
    assert others.ping() is None


def test_a_broker_that_is_away_costs_the_oldest_events_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "KEPT_EVENTS", 4)
    world = World()
    for number in range(3):
        envelope = task(f"t{number}")
        world.remote.accepted(envelope)
        world.remote.finished(envelope, Ending.ANSWERED)
    with world.running():
        world.hear("task-succeeded")
        told = [(each["type"], each["uuid"]) for each in world.events if "uuid" in each]
    assert told == [
        ("task-succeeded", "t1"),
        ("task-received", "t2"),
        ("task-started", "t2"),
        ("task-succeeded", "t2"),
    ]
