"""worker.broker.backlog: any content of the unacknowledged index makes a fixed set of labels."""

import random
from typing import Any, Self

import pytest

from worker.broker.backlog import OTHER, UNACKED, read_backlog
from worker.broker.keys import BACKFILL_QUEUE, LIVE_QUEUE, QUEUES, delivery_tag


class Index:
    """A client of a Redis with empty queues and an index that holds `tags`."""

    def __init__(self, tags: list[bytes]) -> None:
        self._tags = tags
        self._lists = 0

    def pipeline(self, *, transaction: bool) -> Self:
        assert not transaction
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def llen(self, _key: str) -> None:
        self._lists += 1

    def zrange(self, *_: object) -> None:
        pass

    def execute(self) -> list[Any]:
        return [*[0] * self._lists, self._tags]


def unacked(*tags: bytes) -> dict[str, int]:
    client: Any = Index(list(tags))
    counts = read_backlog(client)
    assert counts is not None
    return {queue: count for (queue, state), count in counts.items() if state == UNACKED}


def test_a_tag_counts_for_its_queue() -> None:
    tags = [delivery_tag(queue, "1").encode() for queue in (LIVE_QUEUE, LIVE_QUEUE, BACKFILL_QUEUE)]
    assert unacked(*tags) == {LIVE_QUEUE: 2, BACKFILL_QUEUE: 1}


@pytest.mark.parametrize(
    "tag",
    [
        b"",
        b"/",
        b"other/1",
        b"sqe.evaluate2/1",
        b" sqe.evaluate/1",
        b"sqe.evaluate\xff/1",
        b"sqe.evaluate\0/1",
        b"SQE.EVALUATE/1",
        b"\xff\xfe/1",
        b"\xed\xa0\x80/1",
        b'a"b\n{}\\/1',
        b"x" * 1_000_000,
    ],
    ids=lambda tag: repr(tag[:12]),
)
def test_any_other_tag_counts_as_other(tag: bytes) -> None:
    assert unacked(tag) == {LIVE_QUEUE: 0, BACKFILL_QUEUE: 0, OTHER: 1}


def test_any_number_of_foreign_tags_makes_one_label() -> None:
    random_ = random.Random(0)
    tags = [random_.randbytes(random_.randrange(40)) for _ in range(1000)]
    tags += [f"queue-{number}/1".encode() for number in range(1000)]
    assert unacked(*tags) == {**dict.fromkeys(QUEUES, 0), OTHER: 2000}
