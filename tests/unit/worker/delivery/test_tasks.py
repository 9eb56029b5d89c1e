"""worker.delivery.tasks: the messages in a task's arguments."""

import json

import pytest

from schemas import MessageRejected, RejectionReason
from worker.broker.app import EVALUATE, EVALUATE_BATCH, MAX_BATCH
from worker.delivery import tasks
from worker.delivery.envelope import Envelope
from worker.delivery.tasks import bodies_of, message_of, messages_of


def arguments(*args: object, **kwargs: object) -> bytes:
    return json.dumps([args, kwargs, {"callbacks": None}]).encode()


@pytest.mark.parametrize("sent", [arguments("text"), arguments(message="text")])
def test_a_message_is_given_by_position_or_by_name(sent: bytes) -> None:
    assert message_of(sent) == "text"


@pytest.mark.parametrize("sent", [arguments(["a", {}]), arguments(messages=["a", {}])])
def test_a_batch_is_given_by_position_or_by_name(sent: bytes) -> None:
    assert messages_of(sent) == ["a", {}]


@pytest.mark.parametrize(
    "sent",
    [
        arguments(),
        arguments("a", "b"),
        arguments("a", extra=1),
        arguments(text="a"),
        b"[]",
        b"{}",
        b"null",
        b'["a", {}, {}]',
        b'[["a"], [], {}]',
        b'[["a"]]',
        b'{"args": ["a"], "kwargs": {}}',
    ],
)
def test_any_other_arguments_are_refused(sent: bytes) -> None:
    with pytest.raises(MessageRejected, match="takes one argument") as caught:
        message_of(sent)
    assert caught.value.reason is RejectionReason.NOT_A_MESSAGE


@pytest.mark.parametrize("sent", [arguments("a"), arguments({"a": 1}), arguments(None)])
def test_a_batch_is_a_list(sent: bytes) -> None:
    with pytest.raises(MessageRejected, match="a list of messages"):
        messages_of(sent)


def test_a_batch_over_the_limit_is_refused_with_the_fix() -> None:
    assert len(messages_of(arguments(["a"] * MAX_BATCH))) == MAX_BATCH
    with pytest.raises(MessageRejected, match="257 messages, but a batch may have 256: send"):
        messages_of(arguments(["a"] * (MAX_BATCH + 1)))


@pytest.mark.parametrize("number", ["9" * 5000, "1e999", "NaN"])
def test_a_number_in_one_message_does_not_refuse_the_others(number: str) -> None:
    batch = messages_of(f'[[[{{"puzzle_id": {number}}}, "text"]], {{}}, {{}}]'.encode())
    assert batch[1] == "text"


@pytest.mark.parametrize("task", [EVALUATE, EVALUATE_BATCH])
def test_an_error_while_arguments_are_read_refuses_the_task(
    monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    def broken(_body: bytes) -> None:
        raise OverflowError("hush")

    monkeypatch.setattr(tasks, "read_json", broken)
    with pytest.raises(MessageRejected, match="unexpected OverflowError"):
        bodies_of(Envelope(task, "t1", "q", b"[]", None, keep_result=True))
