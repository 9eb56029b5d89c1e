"""worker.fleet.restarts: the pauses between restarts, and their end."""

from worker.fleet.restarts import EARLY_SECONDS, Restarts


def test_pauses_double_with_each_early_end_and_the_fifth_is_the_last() -> None:
    restarts = Restarts()
    assert [restarts.ended(0) for _ in range(5)] == [1, 2, 4, 8, None]


def test_a_worker_that_was_ready_for_long_has_a_clean_slate() -> None:
    restarts = Restarts()
    assert [restarts.ended(EARLY_SECONDS - 1) for _ in range(4)] == [1, 2, 4, 8]
    assert restarts.ended(EARLY_SECONDS) == 1
    assert [restarts.ended(0) for _ in range(5)] == [1, 2, 4, 8, None]
