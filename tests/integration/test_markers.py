"""worker.delivery.markers inside a real Redis: which markers are remembered, and in what form."""

import random
import threading

import pytest
import redis

from tests.support.markers import DAY, store_markers
from tests.support.processes import wait_for
from worker.broker.keys import AGENTS, CANARIES, COUNTED, EVIDENCE, NOTED, attempt
from worker.delivery.markers import marker_of
from worker.delivery.scripts import STORE, outcome_arguments


def count(
    store: redis.Redis, *messages: object, seconds: int = DAY, attempted: str | None = None
) -> list[int]:
    """Store outcomes of these messages in one attempt."""
    markers = (marker_of(str(each).encode()) for each in messages)
    return store_markers(store, markers, seconds=seconds, token=attempted)


def names(store: redis.Redis, pattern: str = "*") -> list[str]:
    return [name.decode() for name in store.scan_iter(f"{COUNTED}:{pattern}", count=1000)]


def sets(store: redis.Redis) -> list[str]:
    return names(store, "*:*")


def at(store: redis.Redis, seconds: int) -> float:
    """How far the current slice is, by the server's clock."""
    now = store.time()
    return (now[0] + now[1] / 1e6) / (seconds / 2) % 1


def wait_for_a_slice(store: redis.Redis, seconds: int) -> None:
    wait_for(lambda: at(store, seconds) < 0.9, "a slice that does not end soon")


def test_random_messages_are_remembered_as_a_set_of_python_remembers_them(
    store: redis.Redis,
) -> None:
    chance = random.Random(7)
    remembered: set[int] = set()
    for _ in range(300):
        messages = [chance.randrange(20_000) for _ in range(chance.randrange(1, 150))]
        expected = []
        for each in messages:
            expected.append(int(each not in remembered))
            remembered.add(each)
        assert count(store, *messages) == expected
    assert sum(map(store.scard, sets(store))) == len(remembered)


def test_sets_stay_small_and_cheap_while_they_become_more(store: redis.Redis) -> None:
    for first in range(0, 30_000, 250):
        assert count(store, *range(first, first + 250)) == [1] * 250
    found = sets(store)
    assert len(found) == 30_000 / 200
    assert {store.object("encoding", each) for each in found} == {b"intset"}
    assert max(map(store.scard, found)) < 512
    # The memory of the keys and their values, without the server's own tables.
    assert sum(store.memory_usage(each) or 0 for each in found) < 30_000 * 11


def test_a_call_with_many_markers_makes_room_for_all(store: redis.Redis) -> None:
    assert count(store, *range(2000)) == [1] * 2000
    assert len(sets(store)) == 10
    assert count(store, *range(2000)) == [0] * 2000


def test_every_key_expires_one_window_after_its_slice(store: redis.Redis) -> None:
    count(store, *range(1000))
    ends = (store.time()[0] // (DAY // 2) + 3) * (DAY // 2)
    found = names(store)
    assert len(found) == 1 + 5
    assert {store.expiretime(each) for each in found} == {ends}


def test_markers_are_found_in_the_next_two_slices_and_no_later(store: redis.Redis) -> None:
    seconds = 600
    wait_for_a_slice(store, seconds)
    number = store.time()[0] // 300
    count(store, *range(3000), seconds=seconds)
    for age, found in ((1, 0), (2, 0), (3, 1)):
        # As if the slice had begun half a window earlier.
        for name in names(store):
            store.rename(name, name.replace(f":{number - age + 1}", f":{number - age}"))
        assert count(store, *range(3000), seconds=seconds) == [found] * 3000


def test_after_the_window_a_message_counts_again(store: redis.Redis) -> None:
    seconds = 1
    assert count(store, "a", seconds=seconds) == [1]
    counted_by = store.time()[0] + 1
    wait_for(lambda: store.time()[0] >= counted_by + 1.5 * seconds, "the window")
    assert count(store, "a", seconds=seconds) == [1]
    wait_for(lambda: not names(store), "all markers expired")


def test_workers_at_the_same_time_count_each_message_once(redis_url: str) -> None:
    counted: list[int] = []

    def work(number: int) -> None:
        with redis.Redis.from_url(redis_url) as own:
            for first in range(0, 4000, 100):
                counted.extend(
                    count(own, *range(first, first + 100), attempted=f"{number}/{first}")
                )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(counted), sum(counted)) == (16_000, 4000)


def test_a_full_redis_takes_markers(store: redis.Redis) -> None:
    store.config_set("maxmemory", "100kb")
    assert count(store, *range(1000)) == [1] * 1000
    assert count(store, *range(1000)) == [0] * 1000


def test_an_attempt_is_told_the_same_again_and_another_is_not(store: redis.Redis) -> None:
    count(store, "old")
    assert count(store, "old", "a", "a", "b", attempted="one") == [0, 1, 0, 1]
    assert count(store, "old", "a", "a", "b", attempted="one") == [0, 1, 0, 1]
    assert count(store, "old", "a", "a", "b", attempted="two") == [0, 0, 0, 0]


def test_an_entry_that_is_refused_leaves_no_marker_and_the_others_counted(
    store: redis.Redis,
) -> None:
    store.set("stream", "no stream")
    entry = ("stream", 99, 1, "", "*", "a", 1)
    outcomes = [
        each
        for number, extra in enumerate(((), entry, ()))
        for each in outcome_arguments(marker_of(b"%d" % number), record=extra)
    ]
    keys = (*NOTED, COUNTED, attempt("test"), AGENTS, CANARIES, EVIDENCE)
    for _ in range(2):
        first, refused, last = STORE(store, keys, DAY, "token", 9, "", 0, *outcomes)
        assert (first, last) == (1, 1)
        assert b"WRONGTYPE" in refused
    store.delete("stream")
    assert STORE(store, keys, DAY, "token", 9, "", 0, *outcomes) == [1, 1, 1]
    assert store.xlen("stream") == 1


@pytest.mark.parametrize("parts", [(b"a", b"b"), (b"digest", b"id", b"{}")])
def test_a_marker_has_63_bits(parts: tuple[bytes, ...]) -> None:
    markers = {int(marker_of(*parts, b"%d" % number)) for number in range(1000)}
    assert len(markers) == 1000
    assert 2**60 < max(markers) < 2**63
