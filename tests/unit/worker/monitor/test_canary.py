"""worker.monitor.canary: what is sent, what its outcome is called, and what a restart continues."""

import time
from pathlib import Path
from typing import Any

import pytest
import redis

from hrm.checkpoint.solved import SolvedTexts
from hrm.data.texts import TextHashes
from schemas import MessageRejected, RejectionReason, SQEMessage, Verdict
from tests.support.stubs import DIGEST, message, verdict
from worker.broker.contract import CANARY_AGENT
from worker.broker.keys import CANARIES, NO_NAMESPACE
from worker.client import BrokerUnreachable, ResultTimeout
from worker.monitor.canary import GIVE_UP_SECONDS, Canary, CanaryError, Question, read_canaries
from worker.monitor.figures import CanaryOutcome


class World:
    """A Redis and a client; `outcome` is what the client finds, or raises."""

    def __init__(self) -> None:
        self.ids: set[bytes] = set()
        self.sent: list[SQEMessage] = []
        self.expected_when_sent: list[bool] = []
        self.outcome: Any = verdict(message())
        self.noted: list[tuple[CanaryOutcome, bool]] = []

    def smembers(self, key: str) -> set[bytes]:
        assert key == CANARIES
        return set(self.ids)

    def sadd(self, _key: str, name: str) -> None:
        self.ids.add(name.encode())

    def srem(self, _key: str, *names: str | bytes) -> None:
        self.ids -= {name.encode() if isinstance(name, str) else name for name in names}

    def submit(self, sent: SQEMessage, *, keep_result: float) -> str:
        assert keep_result > GIVE_UP_SECONDS
        self.sent.append(sent)
        self.expected_when_sent.append(sent.message_id.encode() in self.ids)
        return sent.message_id

    def result(self, message_id: str, timeout: float) -> Verdict:
        assert timeout
        assert message_id.encode() in self.ids
        if isinstance(self.outcome, Exception):
            raise self.outcome
        found: Verdict = self.outcome
        return found

    def monitor(self, *messages: SQEMessage, solved_by: str | None = None) -> Canary:
        """A monitor that starts."""
        both: Any = self
        return Canary(
            both,
            both,
            NO_NAMESPACE,
            [Question(each, solved_by) for each in messages or [message()]],
            seconds=1,
            note=lambda outcome, seconds: self.noted.append((outcome, seconds is not None)),
        )


@pytest.fixture
def world() -> World:
    return World()


def test_each_step_sends_the_next_message_as_a_canary(world: World) -> None:
    messages = [message("one", category="ci_cd"), message("two")]
    monitor = world.monitor(*messages)
    for _ in range(3):
        monitor.step()
    assert [sent.prompt for sent in world.sent] == ["one", "two", "one"]
    assert [sent.category for sent in world.sent] == ["ci_cd", None, "ci_cd"]
    assert {sent.agent_id for sent in world.sent} == {CANARY_AGENT}
    assert len({sent.message_id for sent in world.sent}) == 3
    assert world.expected_when_sent == [True] * 3, "workers know it before it comes"
    assert world.noted == [(CanaryOutcome.SOLVED, True)] * 3
    assert not world.ids


@pytest.mark.parametrize(
    ("outcome", "called"),
    [
        (verdict(message("solve")), CanaryOutcome.SOLVED),
        (verdict(message("fail")), CanaryOutcome.UNPROVEN),
        (verdict(message("fail")).model_copy(update={"known": False}), CanaryOutcome.UNKNOWN),
        (verdict(message()).model_copy(update={"known": False}), CanaryOutcome.UNKNOWN),
        (MessageRejected(RejectionReason.EVALUATION_FAILED, "why"), CanaryOutcome.REFUSED),
    ],
)
def test_an_outcome_is_noted_once(world: World, outcome: Any, called: CanaryOutcome) -> None:  # noqa: ANN401
    world.outcome = outcome
    world.monitor().step()
    assert world.noted == [(called, True)]
    assert not world.ids


def test_only_what_the_serving_checkpoint_is_recorded_to_solve_is_unsolved(world: World) -> None:
    world.outcome = verdict(message("fail"))
    monitor = world.monitor(solved_by=DIGEST)
    monitor.step()
    world.outcome = world.outcome.model_copy(update={"checkpoint_digest": "f" * 64})
    monitor.step()
    outcomes = [CanaryOutcome.UNSOLVED, CanaryOutcome.UNPROVEN]
    assert [outcome for outcome, _ in world.noted] == outcomes


def test_what_a_checkpoint_solved_once_it_has_to_solve_again(world: World) -> None:
    solved, failed = verdict(message()), verdict(message("fail"))
    monitor = world.monitor(message("one"), message("two"))
    for world.outcome in (solved, failed, failed, failed):
        monitor.step()
    # Another checkpoint, which was loaded meanwhile, has solved nothing yet.
    for outcome in (failed, failed):
        world.outcome = outcome.model_copy(update={"checkpoint_digest": "f" * 64})
        monitor.step()
    expected = ["solved", "unproven", "unsolved", "unproven", "unproven", "unproven"]
    assert [str(outcome) for outcome, _ in world.noted] == expected


def test_a_wrong_answer_to_a_question_of_an_earlier_monitor_is_unproven(world: World) -> None:
    world.outcome = ResultTimeout("no outcome")
    world.monitor(solved_by=DIGEST).step()
    world.outcome = verdict(message("fail"))
    world.monitor(solved_by=DIGEST).step()
    assert world.noted[-1] == (CanaryOutcome.UNPROVEN, True)


def test_while_one_is_late_no_other_is_sent(world: World) -> None:
    monitor = world.monitor()
    world.outcome = ResultTimeout("no outcome")
    for _ in range(3):
        monitor.step()
    assert len(world.sent) == 1
    world.outcome = verdict(message())
    for _ in range(2):
        monitor.step()
    assert len(world.sent) == 2
    assert world.noted == [(CanaryOutcome.LATE, False)] * 3 + [(CanaryOutcome.SOLVED, True)] * 2


def test_a_lost_one_is_given_up_and_still_expected(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = world.monitor()
    world.outcome = ResultTimeout("no outcome")
    monitor.step()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + GIVE_UP_SECONDS + 1)
    monitor.step()
    monitor.step()
    assert len(world.sent) == 2
    assert len(world.ids) == 2, "whenever it is evaluated, it is no agent's"
    monkeypatch.setattr(time, "time", lambda: now + 8 * 86_400)
    monitor.step()
    monitor.step()
    assert len(world.ids) == 1


def test_a_monitor_that_starts_waits_for_the_canary_of_the_one_before(world: World) -> None:
    world.outcome = ResultTimeout("no outcome")
    world.monitor().step()
    world.outcome = verdict(message())
    world.monitor().step()
    assert len(world.sent) == 1
    assert not world.ids


@pytest.mark.parametrize(
    "rubbish", [b"rubbish", b"canary-x-1", b"canary-nan-1", b"\xff", b"canary-1.5-old"]
)
def test_rubbish_in_the_set_of_ids_is_not_waited_for(world: World, rubbish: bytes) -> None:
    world.ids = {rubbish}
    world.monitor().step()
    assert len(world.sent) == 1
    assert not world.ids, "neither is it kept"


@pytest.mark.parametrize("error", [BrokerUnreachable("away"), redis.ConnectionError("away")])
def test_without_redis_it_is_unsent_and_tried_again(world: World, error: Exception) -> None:
    monitor = world.monitor()
    world.outcome = error
    monitor.step()
    world.outcome = verdict(message())
    monitor.step()
    assert world.noted == [(CanaryOutcome.UNSENT, False), (CanaryOutcome.SOLVED, True)]
    assert len(world.sent) == 1


def test_a_file_may_hold_messages_and_pairs(tmp_path: Path) -> None:
    file = tmp_path / "canaries.jsonl"
    whole = message("whole", puzzle_id=5)
    pair = '{"prompt": "p", "completion": "c", "category": "ci_cd", "alternative": true}'
    file.write_text(f"{whole.model_dump_json(exclude_none=True)}\n{pair}\n")
    first, second = [each.message for each in read_canaries(file)]
    assert first == whole
    assert (second.prompt, second.completion, second.category) == ("p", "c", "ci_cd")


def test_what_is_recorded_as_unsolved_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "canaries.jsonl"
    prompts = ("solved", "unsolved", "other")
    file.write_text("".join(f'{{"prompt": "{each}", "completion": "c"}}\n' for each in prompts))
    solved, unsolved = [frozenset([TextHashes.of(each, "c")]) for each in prompts[:2]]
    found = read_canaries(file, SolvedTexts("digest", solved, unsolved))
    assert [(each.message.prompt, each.solved_by) for each in found] == [
        ("solved", "digest"),
        ("other", None),
    ]
    nothing = SolvedTexts("digest", frozenset(), frozenset(TextHashes.of(p, "c") for p in prompts))
    assert read_canaries(file, nothing) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot be read"), ("", "holds no message"), ("{}\nno json\n", "line 1")],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, content: str | None, problem: str
) -> None:
    file = tmp_path / "canaries.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(CanaryError, match=problem) as caught:
        read_canaries(file)
    assert str(file) in str(caught.value)
