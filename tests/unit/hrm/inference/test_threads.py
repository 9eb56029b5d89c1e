"""Threads share rows and compute each once; an error in one reaches the caller."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrm.inference.engine import Engine
from hrm.inference.threads import Team, end_openmp_threads
from tests.support import reference as reference_data
from tests.support.engines import wait_until

TASKS = Path("/proc/self/task")
"""The threads of this process."""


@given(threads=st.integers(1, 5), rows=st.integers(1, 20))
def test_every_row_is_computed_once_and_the_threads_are_used(threads: int, rows: int) -> None:
    computed: Counter[int] = Counter()
    shares: list[int] = []
    torch_threads: set[int] = set()
    lock = threading.Lock()

    def work(first: int, end: int) -> None:
        with lock:
            computed.update(range(first, end))
            shares.append(end - first)
            torch_threads.add(torch.get_num_threads())

    before = torch.get_num_threads()
    try:
        with closing(Team(threads)) as team:
            for _ in range(2):
                team.run([(work, rows)])
    finally:
        torch.set_num_threads(before)  # the calling thread's own were set too
    assert computed == dict.fromkeys(range(rows), 2)
    assert len(shares) == 2 * min(threads, rows)
    assert max(shares) - min(shares) <= 1
    assert torch_threads == {threads // min(threads, rows)}


@pytest.mark.parametrize("failing", [0, 2, 4])
def test_an_error_is_raised_when_all_threads_are_done(failing: int) -> None:
    done: list[int] = []

    def work(first: int, _: int) -> None:
        if first == failing:
            raise RuntimeError("no")
        done.append(first)

    with closing(Team(3)) as team, pytest.raises(RuntimeError, match="no"):
        team.run([(work, 6)])
    assert sorted(done) == sorted({0, 2, 4} - {failing})


def test_threads_compute_in_inference_mode() -> None:
    modes: list[bool] = []
    with closing(Team(2)) as team:
        team.run([(lambda *_: modes.append(torch.is_inference_mode_enabled()), 2)])
    assert modes == [True, True]


@given(threads=st.integers(1, 5), counts=st.lists(st.integers(0, 7), max_size=4))
def test_the_rows_of_several_works_are_shared_like_one_batch(
    threads: int, counts: list[int]
) -> None:
    computed: Counter[tuple[int, int]] = Counter()
    shares: Counter[int] = Counter()
    lock = threading.Lock()

    def compute(number: int, first: int, end: int) -> None:
        with lock:
            computed.update((number, row) for row in range(first, end))
            shares[threading.get_ident()] += end - first

    before = torch.get_num_threads()
    try:
        with closing(Team(threads)) as team:
            team.run([(partial(compute, number), count) for number, count in enumerate(counts)])
    finally:
        torch.set_num_threads(before)
    assert computed == dict.fromkeys(
        ((number, row) for number, count in enumerate(counts) for row in range(count)), 1
    )
    assert sum(shares.values()) == sum(counts)


def split(*_: int) -> None:
    """Do work that torch splits among OpenMP's threads."""
    torch.ones(1_000_000).sum()


@pytest.mark.skipif(not TASKS.exists(), reason="counts threads as Linux shows them")
@pytest.mark.parametrize("ending", ["itself", "a team", "an engine"])
def test_openmp_threads_end_before_they_slow_others(ending: str) -> None:
    def others() -> set[Path]:
        return set(TASKS.iterdir()) - before

    def work() -> None:
        torch.set_num_threads(2)
        with closing(Team(2)) as team:
            team.run([(split, 1)])
            started = others()
            assert len(started) == 1
            match ending:
                case "itself":
                    end_openmp_threads()
                case "a team":
                    team.run([(lambda *_: None, 2)])
                case "an engine":
                    Engine(reference_data.network(), slots=8).close()
            wait_until(lambda: not started & others())
            team.run([(split, 1)])  # they start again where they are needed
            assert others()

    with ThreadPoolExecutor(1) as own:
        own.submit(threading.get_ident).result()  # has the thread started
        before = set(TASKS.iterdir())
        own.submit(work).result()
