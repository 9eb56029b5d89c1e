"""The ledger sees what is lost, counted twice or left, however it came about."""

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from tests.faults.ledger import Row
from tests.faults.scene import Scene
from tests.support.servers import server
from tests.support.stubs import message
from worker.broker.keys import BACKFILL_QUEUE, DEAD_LETTERS, FAILURES, FAULTS, partial, result

COUNTED = Counter({"evaluations_total": 3, "failures_total": 1, "rejected_total": 2})
"""The worker's counters in `scene`."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Three verdicts, one of them unsolved, and two dead letters, one without a message id."""
    folder = tmp_path_factory.mktemp("ledger")
    with server(folder) as redis_server, Scene(folder, redis_server.url) as made:
        worker = made.start()
        for prompt in ("solve", "fail", "hit", "nan"):
            made.submit(message(prompt))
        made.send(0)
        assert made.close(1).problems == ()
        made.stop(worker, signal.SIGTERM)
        assert worker.wait() == 0
        yield made


@pytest.fixture
def close(scene: Scene) -> Iterator[Callable[..., Row]]:
    """Closes the ledger; what a test has changed in Redis is undone afterwards."""
    kept: Any = {key: scene.store.dump(key) for key in scene.store.scan_iter()}

    def run(counted: Counter[str] = COUNTED, *, exact: bool = True) -> Row:
        return scene.ledger.close(scene.client, scene.store, counted, exact=exact, again=0)

    yield run
    scene.store.flushdb()
    for key, content in kept.items():
        scene.store.restore(key, 0, content)


def first_of(store: redis.Redis, stream: str) -> tuple[bytes, Any]:
    entries: Any = store.xrange(stream)
    (entry_id, fields), *_ = entries
    return entry_id, fields


def test_a_ledger_that_adds_up_has_no_problems(close: Callable[..., Row]) -> None:
    row = close()
    assert row.problems == ()
    assert (row.messages, row.verdicts, row.dead_letters) == (5, 3, 2)
    assert (row.lost, row.counted_twice) == (0, 0)


def test_a_message_without_an_outcome_is_lost(scene: Scene, close: Callable[..., Row]) -> None:
    scene.store.delete(result(next(iter(scene.ledger.accepted))))
    assert close().lost == 1


def test_an_item_without_a_dead_letter_is_lost(scene: Scene, close: Callable[..., Row]) -> None:
    scene.store.delete(DEAD_LETTERS)
    row = close()
    assert row.lost == 1
    assert "1 refused messages missing in the dead-letter stream" in row.problems


@pytest.mark.parametrize("stream", [FAILURES, DEAD_LETTERS])
def test_a_second_entry_of_a_stream_is_counted_twice(
    scene: Scene, close: Callable[..., Row], stream: str
) -> None:
    _, fields = first_of(scene.store, stream)
    scene.store.xadd(stream, fields)
    assert close().counted_twice == 1


def test_a_missing_entry_of_a_stream_is_a_problem(scene: Scene, close: Callable[..., Row]) -> None:
    scene.store.xdel(FAILURES, first_of(scene.store, FAILURES)[0])
    assert close().problems == ("1 unsolved messages missing in the failure stream",)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("counter", ["evaluations_total", "rejected_total"])
def test_a_counter_above_the_outcomes_is_counted_twice(
    close: Callable[..., Row], counter: str, *, exact: bool
) -> None:
    row = close(COUNTED + Counter({counter: 1}), exact=exact)
    assert row.counted_twice == 1
    assert row.problems


@pytest.mark.parametrize("counter", COUNTED)
def test_a_counter_below_the_outcomes_is_a_problem_unless_a_worker_was_killed(
    close: Callable[..., Row], counter: str
) -> None:
    less = COUNTED - Counter({counter: 1})
    assert close(less).problems == (f"1 missing in {counter}",)
    assert close(less, exact=False).problems == ()


def test_a_message_that_is_answered_again_without_reason_is_a_problem(
    close: Callable[..., Row],
) -> None:
    row = close(COUNTED + Counter({"duplicates_total": 1}))
    assert row.again == 1
    assert row.problems == ("1 more answered again than expected",)


@pytest.mark.parametrize(
    ("leave", "problem"),
    [
        (lambda store: store.lpush(BACKFILL_QUEUE, "item"), f"1 left in {BACKFILL_QUEUE}"),
        (lambda store: store.hset(FAULTS, "digest", "-"), f"1 left in {FAULTS}"),
        (lambda store: store.hset(partial("batch"), "0", ""), "1 partial batches left"),
    ],
)
def test_what_is_left_is_a_problem(
    scene: Scene,
    close: Callable[..., Row],
    leave: Callable[[redis.Redis], object],
    problem: str,
) -> None:
    leave(scene.store)
    assert close().problems == (problem,)


def test_a_sound_message_that_is_refused_is_a_problem(
    scene: Scene, close: Callable[..., Row]
) -> None:
    refused = scene.ledger.refused.pop()
    try:
        assert close().problems == ("1 sound messages refused",)
    finally:
        scene.ledger.refused.add(refused)
