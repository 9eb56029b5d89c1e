"""worker.delivery.service: each body has one outcome, whatever the others are."""

# ruff: noqa: ANN401 - stand-ins take whatever they are given
import gc
import itertools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hrm.inference.prediction import EngineFailedError
from schemas import (
    DeadLetter,
    Rejection,
    RejectionReason,
    Verdict,
)
from tests.support.pipelines import FakeClient
from tests.support.processes import wait_for
from tests.support.stubs import Checkpoint, StubEvaluator, StubPending, message
from worker.broker.app import ENQUEUED_AT, EVALUATE, EVALUATE_BATCH
from worker.broker.keys import LIVE_QUEUE, QUEUES
from worker.delivery import storing, tasks
from worker.delivery.envelope import Envelope
from worker.delivery.hand import Hand
from worker.delivery.job import Ending
from worker.delivery.outcomes import Answer, Batch, Delivery, Entry
from worker.delivery.service import MAX_ERRORS_IN_A_ROW, Service
from worker.delivery.storing import Storing
from worker.delivery.suspicion import Suspicion
from worker.delivery.taken import Taken
from worker.delivery.waits import CLOCK_SKEW, LONGEST_WAIT
from worker.evaluator import Evaluated
from worker.telemetry.metrics import Metrics


class Recorder(Delivery):
    """Delivery without Redis: every answer is the first for its message unless `first` is unset."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.by_position: dict[int, Answer] = {}
        self.acknowledged: list[str] = []
        self.lists: list[tuple[str | None, list[str]]] = []
        self.noted: dict[bytes, bytes] = {}
        self.first = True
        self.marked: list[tuple[str, int]] = []
        self.returned: list[tuple[str, bool]] = []
        self._worker = "w:1"

    def mark_alone(self, pipe: Any, suspicion: Suspicion, position: int) -> None:
        pipe.add(lambda: self.marked.append((suspicion.digest, position)))

    def begin(self, pipe: Any, batch: Batch) -> None:  # noqa: ARG002
        pipe.add(lambda: self.noted)

    def store(self, pipe: Any, entries: Sequence[Entry], token: str, name: str) -> None:
        assert token
        assert name
        pipe.add(lambda: [self.stored(entry) for entry in entries])

    def stored(self, entry: Entry) -> int:
        assert json.loads(entry.outcome)
        assert bool(entry.tag) == (entry.batch is None)
        self.answers.append(entry.answer)
        self.by_position[entry.position] = entry.answer
        if entry.tag:
            self.acknowledged.append(entry.tag)
        return self.first

    def finish(self, pipe: Any, batch: Batch, outcomes: Sequence[str], tag: str) -> None:
        def finished() -> None:
            self.lists.append((batch.list_id, list(outcomes)))
            self.acknowledged.append(tag)

        pipe.add(finished)

    def put_back(self, pipe: Any, tag: str, *, fault: bool) -> None:
        pipe.add(lambda: self.returned.append((tag, fault)))


class Watching:
    """Notes what the service says about tasks."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def accepted(self, envelope: Envelope) -> None:
        self.seen.append((envelope.task_id, "accepted"))

    def finished(self, envelope: Envelope, ending: Ending) -> None:
        self.seen.append((envelope.task_id, ending))


class World:
    def __init__(self) -> None:
        self.evaluator = StubEvaluator()
        self.delivery = Recorder()
        self.metrics = Metrics()
        self.broken: list[str] = []
        self.hand = Hand(slots=4)
        self.observer = Watching()
        client: Any = FakeClient()
        self.storing = Storing(client, self.delivery.store, replicas=0, on_error=lambda: None)
        self.service = Service(
            self.evaluator,
            self.delivery,
            self.storing,
            self.hand,
            self.metrics,
            on_broken=self.broken.append,
            is_broken=lambda: bool(self.broken),
            observer=self.observer,
        )
        self.storing.start()
        self.service.start()
        self.tags = itertools.count()

    def take(
        self,
        *bodies: object,
        batch: bool = True,
        at: float | None = None,
        faults: str | None = None,
        queue: str = "sqe.evaluate",
        expires_at: datetime | None = None,
    ) -> str:
        """Hand a task over; returns the tag of its delivery."""
        suspicion = None if faults is None else Suspicion.read(b"digest", faults.encode())
        args = [list(bodies)] if batch else list(bodies)
        item = json.dumps(
            {
                "body": json.dumps([args, {}, {}]),
                "content-type": "application/json",
                "headers": {
                    "task": EVALUATE_BATCH if batch else EVALUATE,
                    "id": "task-1",
                    ENQUEUED_AT: at,
                    "expires": expires_at and expires_at.isoformat(),
                },
                "properties": {},
            }
        )
        return self.take_item(item.encode(), queue, suspicion)

    def take_item(
        self, item: bytes, queue: str = "sqe.evaluate", suspicion: Suspicion | None = None
    ) -> str:
        tag = f"{queue}/{next(self.tags)}"
        self.hand.add(tag, queue, 1, is_suspect=suspicion is not None)
        self.service.take([Taken(item, tag, queue, 1 << 20, suspicion)])
        return tag

    def wait(self) -> None:
        wait_for(lambda: not self.hand.tags(), "nothing in hand")

    def process(self, *bodies: object, **options: Any) -> list[Any]:
        """Deliver a task; returns its outcomes, in the order of the bodies."""
        self.delivery.by_position.clear()
        tag = self.take(*bodies, **options)
        self.wait()
        assert self.delivery.acknowledged[-1:] == [tag], "acknowledged"
        assert not self.delivery.returned
        return [answer.outcome for _, answer in sorted(self.delivery.by_position.items())]

    def give_back(self, *bodies: object, fault: bool = True, **options: Any) -> None:
        """Deliver a task that has to be delivered again."""
        self.delivery.by_position.clear()
        tag = self.take(*bodies, **options)
        self.wait()
        assert self.delivery.returned == [(tag, fault)]
        assert tag not in self.delivery.acknowledged
        self.delivery.returned.clear()

    def letter_bodies(self) -> list[bytes]:
        records = [answer.record for answer in self.delivery.answers]
        return [record.body for record in records if isinstance(record, DeadLetter)]

    def count(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"sqe_hrm_{name}", labels)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(storing, "THREADS", 1)  # so that outcomes are stored in order
    world = World()
    yield world
    world.storing.give_up()
    world.service.abandon()
    world.service.drain()
    world.storing.stop()
    for flow in world.hand.flows().values():
        assert flow.taken == flow.settled + flow.returned
        assert not flow.in_hand


def text(prompt: str = "solve", **fields: Any) -> str:
    return message(prompt, **fields).model_dump_json(exclude_none=True)


def test_outcomes_come_in_the_order_of_the_bodies(world: World) -> None:
    bodies = [text("solve"), "no json", text("fail"), 7, text("nan"), text("solve")]
    outcomes = world.process(*bodies)
    assert [getattr(outcome, "reason", None) or outcome.solved for outcome in outcomes] == [
        True,
        RejectionReason.NOT_JSON,
        False,
        RejectionReason.NOT_A_MESSAGE,
        RejectionReason.EVALUATION_FAILED,
        True,
    ]


def test_messages_leave_no_cycles(world: World) -> None:
    """Python looks for them seldom, and those of refused messages would hold what was refused."""
    gc.disable()
    try:
        for _ in range(2):  # the first time, something is built that stays
            gc.collect()
            world.process(*[text("solve"), "no json", text("fail"), 7, text("nan")] * 20)
            for body in (b"no task", b"[]"):
                world.take_item(body)
            world.take(7)
            world.take("several", "arguments", batch=False)
            world.wait()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_decoded_message_is_a_message(world: World) -> None:
    (outcome,) = world.process(json.loads(text()))
    assert outcome.solved


def test_every_outcome_is_counted_by_its_kind(world: World) -> None:
    world.process(text("solve"), text("fail"), text("nan"), "no json")
    labels = {"checkpoint": "stub", "known": "true", "difficulty": "easy", "category": "other"}
    labels["lane"] = "live"
    assert world.count("evaluations_total", outcome="solved", **labels) == 1
    assert world.count("evaluations_total", outcome="unsolved", **labels) == 1
    failed = {"checkpoint": "stub", "lane": "live", "known": "true"}
    assert world.count("failures_total", pattern="near_miss", **failed) == 1
    assert world.count("token_confusions_total", target="test", predicted="agent") == 2
    assert world.count("rejected_total", reason="not_json") == 1
    assert world.count("rejected_total", reason="evaluation_failed") == 1
    assert world.count("errors_total", kind="evaluation") == 1


def test_a_message_counted_before_is_answered_and_counted_as_a_duplicate(
    world: World,
) -> None:
    world.delivery.first = False
    assert len(world.process(text(), "no json")) == 2
    assert world.count("duplicates_total") == 2
    assert world.count("rejected_total", reason="not_json") == 0


def test_a_message_is_counted_for_the_checkpoint_that_answered_it(world: World) -> None:
    result = StubPending.result

    def change_checkpoint(self: StubPending, timeout: float | None = None) -> Evaluated:
        world.evaluator.checkpoint = Checkpoint("next", "f" * 64)
        return result(self, timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StubPending, "result", change_checkpoint)
        world.process(text(message_id="m1"))
    (answer,) = world.delivery.answers
    assert isinstance(answer.outcome, Verdict)
    sent = message(message_id="m1")
    assert answer.marker == world.delivery.verdict(answer.outcome, sent, None).marker
    later = answer.outcome.model_copy(update={"checkpoint_digest": "f" * 64})
    assert answer.marker != world.delivery.verdict(later, sent, None).marker


def test_a_single_messages_outcome_is_found_by_its_id_and_by_the_tasks(world: World) -> None:
    world.process(text(message_id="m1"), batch=False)
    assert world.delivery.answers[0].result_ids == ("m1", "task-1")
    assert world.delivery.lists == []


def test_the_outcomes_of_a_batch_are_found_one_by_one_and_as_a_list(world: World) -> None:
    world.process(text(message_id="m1"), text(message_id="m2"))
    assert [answer.result_ids for answer in world.delivery.answers] == [("m1",), ("m2",)]
    ((list_id, outcomes),) = world.delivery.lists
    assert list_id == "task-1"
    assert [json.loads(each)["message_id"] for each in outcomes] == ["m1", "m2"]


def test_a_refused_message_of_a_batch_does_not_take_the_place_of_the_list(world: World) -> None:
    world.process("no json", '{"message_id": "m1"}')
    assert [answer.result_ids for answer in world.delivery.answers] == [(), ("m1",)]


@pytest.mark.parametrize(
    ("body", "own_id"),
    [
        ('{"message_id": "m1"}', "m1"),
        ({"message_id": "m1"}, "m1"),
        ('{"message_id": 5}', "task-1"),
        ('{"message_id": "not an id"}', "task-1"),
        ("[" * 100_000, "task-1"),
        ("[]", "task-1"),
        ('{"message_id": "m1", "puzzle_id": ' + "9" * 5000 + "}", "m1"),
    ],
)
def test_a_refused_message_is_answered_under_its_own_id_if_one_can_be_read(
    world: World, body: object, own_id: str
) -> None:
    (outcome,) = world.process(body, batch=False)
    assert isinstance(outcome, Rejection)
    assert outcome.message_id == own_id
    assert world.delivery.answers[0].result_ids == tuple(dict.fromkeys((own_id, "task-1")))


@pytest.mark.parametrize("faults", [None, "- -"])
def test_each_message_of_an_expired_task_is_refused_and_not_evaluated(
    world: World, faults: str | None
) -> None:
    late = datetime.now(UTC) - timedelta(seconds=1)
    sent = [text(message_id="m1"), text(message_id="m2")]
    outcomes = world.process(*sent, faults=faults, expires_at=late)
    assert [each.reason for each in outcomes] == [RejectionReason.EXPIRED] * 2
    assert sorted(answer.result_ids for answer in world.delivery.answers) == [("m1",), ("m2",)]
    assert sorted(world.letter_bodies()) == sorted(each.encode() for each in sent)
    assert world.evaluator.submitted == []
    assert world.count("rejected_total", reason="expired") == 2


def test_a_task_is_evaluated_until_it_expires(world: World) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    (outcome,) = world.process(text(), expires_at=soon)
    assert outcome.solved


def test_a_dead_letter_holds_the_original_bytes(world: World) -> None:
    world.process("nö {", {"b": 1, "a": "é"}, "\ud800")
    assert world.letter_bodies() == ["nö {".encode(), b'{"b":1,"a":"\\u00e9"}', b"\xed\xa0\x80"]


def test_equal_refused_messages_are_told_apart_by_position_and_task(world: World) -> None:
    world.process("same", "same")
    world.process("same", "same")
    markers = [answer.marker for answer in world.delivery.answers]
    assert markers[0] != markers[1]
    assert markers[:2] == markers[2:], "the same task delivered again"


def test_an_unforeseen_error_leaves_its_message_and_no_other_without_an_outcome(
    world: World,
) -> None:
    world.give_back(text("bug"), text(message_id="m1"), text("bug"))
    assert [answer.outcome.message_id for answer in world.delivery.answers] == ["m1"]
    assert world.delivery.lists == []
    assert world.count("errors_total", kind="internal") == 2
    assert world.broken == []


def test_an_unforeseen_error_of_a_suspect_refuses_its_message_and_no_other(world: World) -> None:
    outcomes = world.process(text("bug"), text("solve"), faults="- -")
    assert outcomes[0].reason is RejectionReason.EVALUATION_FAILED
    assert outcomes[1].solved
    assert world.broken == []


def test_an_unforeseen_error_shows_no_text_of_the_message(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.give_back(text("bug secret"))
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def fail(world: World, times: int, *, between: str | None = None) -> None:
    for _ in range(times):
        world.give_back(text("bug"))
        if between is not None:
            world.process(text(between))


def test_a_worker_that_meets_only_errors_stops(world: World) -> None:
    fail(world, MAX_ERRORS_IN_A_ROW - 1)
    world.process(text("solve"))
    fail(world, MAX_ERRORS_IN_A_ROW - 1)
    assert world.broken == []
    fail(world, 1)
    assert len(world.broken) == 1
    assert len(world.delivery.answers) == 1, "no message with an error is answered"


def test_an_answer_of_the_cache_is_no_sign_of_a_sound_engine(world: World) -> None:
    fail(world, MAX_ERRORS_IN_A_ROW, between="hit")
    assert len(world.broken) == 1
    assert world.letter_bodies() == []


def test_an_answer_of_the_engine_is(world: World) -> None:
    fail(world, 3 * MAX_ERRORS_IN_A_ROW, between="solve")
    assert world.broken == []


def test_an_outcome_is_stored_while_others_of_its_batch_are_in_work(
    world: World, tmp_path: Path
) -> None:
    tag = world.take(text(f"hold {tmp_path / 'gate'}"), text(), "no json", text())
    wait_for(lambda: len(world.delivery.answers) == 3, "stored")
    assert sorted(world.delivery.by_position) == [1, 2, 3]
    assert world.delivery.acknowledged == []
    (tmp_path / "gate").touch()
    world.wait()
    assert len(world.delivery.answers) == 4
    assert len(world.delivery.lists) == 1
    assert world.delivery.acknowledged == [tag]


def test_what_an_earlier_delivery_has_stored_is_not_evaluated_again(world: World) -> None:
    world.delivery.noted = {b"0": b'"first"', b"2": b'"third"', b"no position": b""}
    bodies = [text("bug"), text("fail", message_id="m1"), text("bug")]
    (outcome,) = world.process(*bodies)
    assert outcome.message_id == "m1"
    assert world.evaluator.submitted == ["fail"]
    ((_, outcomes),) = world.delivery.lists
    assert [outcomes[0], outcomes[2]] == ['"first"', '"third"']
    world.process(*bodies, faults="- -")
    assert world.evaluator.submitted == ["fail", "fail"]


def test_a_batch_that_is_abandoned_keeps_the_outcomes_it_has(world: World, tmp_path: Path) -> None:
    tag = world.take(text(message_id="m1"), text(f"hang {tmp_path / 'never'}"), text())
    wait_for(lambda: len(world.evaluator.submitted) == 3, "submitted")
    world.service.abandon()
    world.wait()
    assert [answer.outcome.message_id for answer in world.delivery.answers] == ["m1"]
    assert world.delivery.returned == [(tag, False)]
    world.delivery.returned.clear()
    world.give_back(text(), fault=False)
    world.give_back(text(), fault=False, batch=False)


def test_a_suspects_messages_are_evaluated_and_stored_one_by_one(world: World) -> None:
    stored_at_submit: list[int] = []
    submit = world.evaluator.submit

    def recording(body: Any, **options: Any) -> StubPending:
        stored_at_submit.append(len(world.delivery.answers))
        return submit(body, **options)

    world.evaluator.submit = recording  # type: ignore[method-assign]
    outcomes = world.process(text(), "no json", text("fail"), text(), faults="- - 2")
    assert [getattr(each, "reason", "verdict") for each in outcomes] == [
        *("verdict", "not_json", "verdict", "verdict")
    ]
    assert world.delivery.marked == [("digest", position) for position in range(4)]
    assert stored_at_submit == [0, 1, 2, 3]


@pytest.mark.parametrize("queue", QUEUES)
def test_outcomes_gather_only_while_others_wait_for_a_slot(
    world: World, queue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "GATHER_SECONDS", 3600.0)
    holds = [tmp_path / str(number) for number in range(7)]
    for hold in holds:
        world.take(text(f"hold {hold}"), batch=False, queue=queue)
    wait_for(lambda: len(world.evaluator.submitted) == len(holds), "submitted")
    for hold in holds[:2]:  # 5 are left, for 4 slots
        hold.touch()
    wait_for(lambda: len(world.storing._gathered) == 2, "gathered")
    holds[2].touch()
    wait_for(lambda: len(world.delivery.acknowledged) == 1, "stored at once")
    world.storing.flush()
    for hold in holds[3:]:
        hold.touch()
    world.wait()


def test_the_messages_of_a_suspect_wait_for_no_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "GATHER_SECONDS", 3600.0)
    assert len(world.process(*[text()] * 7, faults="- -")) == 7


def test_the_poisonous_message_of_a_suspect_is_a_dead_letter_unread(world: World) -> None:
    bodies = [text(message_id="m0"), text("hold /nowhere", message_id="m1"), text()]
    outcomes = world.process(*bodies, faults="- - 1 1")
    assert [getattr(each, "reason", "verdict") for each in outcomes] == [
        *("verdict", "delivered_too_often", "verdict")
    ]
    assert world.evaluator.submitted == ["solve", "solve"]
    assert world.letter_bodies()[0] == bodies[1].encode()
    assert world.count("rejected_total", reason="delivered_too_often") == 1
    assert [list_id for list_id, _ in world.delivery.lists] == ["task-1"]


def test_the_bugs_of_one_suspect_break_no_worker_but_those_of_eight_do(world: World) -> None:
    def bugs() -> None:
        world.process(*(text("bug") for _ in range(2 * MAX_ERRORS_IN_A_ROW)), faults="- -")

    for _ in range(MAX_ERRORS_IN_A_ROW - 1):
        bugs()
    letters = len(world.letter_bodies())
    world.give_back(*(text("bug") for _ in range(MAX_ERRORS_IN_A_ROW)), faults="- -")
    assert len(world.broken) == 1
    assert len(world.letter_bodies()) == letters, "a broken worker refuses nothing"


def test_a_batch_whose_engine_closes_keeps_the_outcomes_it_has(world: World) -> None:
    world.evaluator.close()
    bodies = [text(message_id="m1"), text("hold /nowhere"), text(message_id="m3")]
    world.give_back(*bodies, fault=False)
    answers = world.delivery.answers
    assert sorted(answer.outcome.message_id or "" for answer in answers) == ["m1", "m3"]
    assert world.broken == [], "it was closed because the worker stops"


def test_a_failed_engine_stops_the_worker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: StubPending) -> Evaluated:
        raise EngineFailedError("the device failed: CUDA error: unspecified launch failure")

    monkeypatch.setattr(StubPending, "result", fail)
    world.give_back(text(), batch=False)
    assert world.broken == ["the device failed: CUDA error: unspecified launch failure"]
    assert world.delivery.answers == []


def test_the_time_in_the_queue_starts_at_the_time_the_producer_gives(world: World) -> None:
    (verdict,) = world.process(text(), at=time.time() - 5)
    assert 5 <= verdict.timings.queue < 6


def test_a_clock_that_is_ahead_makes_no_negative_time(world: World) -> None:
    future = datetime.now(UTC) + timedelta(seconds=60)
    (by_header,) = world.process(text(), at=time.time() + 60)
    (by_message,) = world.process(text(created_at=future))
    assert (by_header.timings.queue, by_message.timings.queue) == (0, 0)


IMPLAUSIBLE = (
    float("nan"),
    float("inf"),
    float("-inf"),
    1e308,
    -1e308,
    0.0,
    1.0,
    time.time() - LONGEST_WAIT - 86_400,
    time.time() + CLOCK_SKEW + 86_400,
    time.time() * 1000,
)


@pytest.mark.parametrize("at", IMPLAUSIBLE, ids=range(len(IMPLAUSIBLE)))
def test_an_implausible_time_of_the_producer_counts_as_absent(world: World, at: float) -> None:
    (verdict,) = world.process(text(created_at=None), at=at)
    assert verdict.timings.queue is None
    assert verdict.timings.total < 1
    created = datetime.now(UTC) - timedelta(seconds=30)
    (verdict,) = world.process(text(created_at=created), at=at)
    assert 29 <= verdict.timings.queue < 31


def test_the_limits_of_a_plausible_time(world: World) -> None:
    def queued(at: float) -> float | None:
        (verdict,) = world.process(text(created_at=None), at=at)
        queue: float | None = verdict.timings.queue
        return queue

    assert queued(time.time() - LONGEST_WAIT + 60) == pytest.approx(LONGEST_WAIT - 60, abs=5)
    assert queued(time.time() - LONGEST_WAIT - 60) is None
    assert queued(time.time() + CLOCK_SKEW - 60) == 0
    assert queued(time.time() + CLOCK_SKEW + 60) is None


@pytest.mark.parametrize(
    "created_at",
    [
        "0001-01-01T00:00:00+23:59",
        "1970-01-01T00:00:00Z",
        "9999-12-31T23:59:59-23:59",
        datetime.now(UTC) - timedelta(days=31),
        datetime.now(UTC) + timedelta(days=1),
    ],
)
def test_a_message_with_an_implausible_creation_time_has_no_time_in_the_queue(
    world: World, created_at: object
) -> None:
    (verdict,) = world.process(text(created_at=created_at))
    assert verdict.timings.queue is None
    assert verdict.timings.total < 1
    assert world.count("queue_seconds_count", queue=LIVE_QUEUE) == 0


def test_without_the_producers_time_the_wait_starts_at_created_at(
    world: World,
) -> None:
    (verdict,) = world.process(text(created_at=datetime.now(UTC) - timedelta(seconds=30)))
    assert 29 <= verdict.timings.queue < 31
    assert verdict.timings.total > verdict.timings.queue


def test_a_task_without_messages_is_one_dead_letter(world: World) -> None:
    world.take(1, 2, batch=False)
    world.wait()
    (letter,) = world.delivery.answers
    assert letter.outcome.message_id == "task-1"
    assert "takes one argument" in str(letter.outcome)
    assert world.letter_bodies() == [b"[[1, 2], {}, {}]"]
    assert world.count("rejected_total", reason="not_a_message") == 1


def test_an_item_that_is_no_task_is_acknowledged_with_its_dead_letter(world: World) -> None:
    tag = world.take_item(b"no task")
    world.wait()
    assert world.letter_bodies() == [b"no task"]
    assert world.delivery.answers[0].marker == ""
    assert world.delivery.acknowledged == [tag]
    assert world.observer.seen == []


def test_an_item_whose_reading_failed_is_one_dead_letter_and_an_error_of_this_worker(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_body: bytes) -> None:
        raise OverflowError("hush")

    monkeypatch.setattr(tasks, "read_json", broken)
    world.take(text(), batch=False)
    world.wait()
    assert "OverflowError" in str(world.delivery.answers[0].outcome)
    assert world.count("errors_total", kind="internal") == 1
    assert world.count("rejected_total", reason="not_a_message") == 1
    assert world.broken == []


def test_an_empty_batch_has_an_empty_list(world: World) -> None:
    world.process()
    assert world.delivery.lists == [("task-1", [])]


def test_a_live_message_overtakes_what_is_left_of_a_batch(world: World, tmp_path: Path) -> None:
    held = [text(f"hold {tmp_path / 'gate'}") for _ in range(100)]
    world.take(*held, queue="sqe.backfill")
    wait_for(lambda: len(world.evaluator.submitted) == world.hand.limit, "as many as wanted")
    world.take(text("solve"), batch=False)
    wait_for(lambda: len(world.delivery.answers) == 1, "answered")
    assert world.evaluator.submitted[-1] == "solve"
    (tmp_path / "gate").touch()
    world.wait()
    assert len(world.delivery.answers) == 101


def test_live_messages_are_urgent_and_others_are_not(world: World) -> None:
    for queue in ("sqe.evaluate", "sqe.backfill"):
        world.process(text(), queue=queue)
    assert world.evaluator.urgent == [True, False]


@pytest.mark.parametrize(
    ("sent", "batch", "ending"),
    [
        (["solve"], False, Ending.ANSWERED),
        (["nan"], False, Ending.REFUSED),
        (["solve", "nan"], True, Ending.ANSWERED),
        ([], True, Ending.ANSWERED),
    ],
)
def test_an_observer_is_told_of_a_task_and_of_its_end(
    world: World, sent: list[str], ending: Ending, *, batch: bool
) -> None:
    world.process(*map(text, sent), batch=batch)
    assert world.observer.seen == [("task-1", "accepted"), ("task-1", ending)]


def test_an_observer_is_told_that_a_task_goes_back(world: World) -> None:
    world.give_back(text("bug"), text())
    assert world.observer.seen == [("task-1", "accepted"), ("task-1", Ending.GIVEN_BACK)]


def test_a_bug_in_storing_gives_back_its_own_item_and_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = world.delivery.store

    def sometimes(pipe: Any, entries: Sequence[Entry], *rest: Any) -> None:
        if any(entry.answer.outcome.message_id == "m1" for entry in entries):
            raise KeyError("secret")
        store(pipe, entries, *rest)

    monkeypatch.setattr(world.storing, "_store", sometimes)
    tag = world.take(text(message_id="m1"), batch=False)
    world.take(text(message_id="m2"), batch=False)
    world.wait()
    assert world.delivery.returned == [(tag, True)]
    assert [answer.outcome.message_id for answer in world.delivery.answers] == ["m2"]


def test_what_a_drain_gives_back_keeps_its_order(world: World, tmp_path: Path) -> None:
    tags = [
        world.take(text(f"hold {tmp_path / 'never'}"), batch=place % 2 == 0) for place in range(5)
    ]
    wait_for(lambda: len(world.evaluator.submitted) == 5, "submitted")
    drain = threading.Thread(target=world.service.drain)
    drain.start()
    world.evaluator.close()
    drain.join()
    # The last one pushed is the next one taken.
    assert world.delivery.returned == [(tag, False) for tag in reversed(tags)]
