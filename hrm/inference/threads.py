"""Shares the rows of a batch among threads of the CPU, each of which computes its own to the end.

Knows threads and numbers of rows; nothing of networks.

torch itself splits every operation among threads, which wait for each other some two hundred times
a step, so one that is kept from its core keeps all. On two cores, 8 rows of the default size in
bfloat16, beside one busy process: 2.9 examples a second split, 4.9 shared; alone: 8.0 split, 7.7
shared. And OpenMP's threads stop waiting actively once a process has two sets of them, such as
one of the thread that loads and one of the thread that computes: 6.3 instead of 8.3 split.
"""

import ctypes
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch

RowWork = Callable[[int, int], None]
"""Computes the rows from the first number up to, not including, the second."""

_PAUSE = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)
"""Of OpenMP 5.0; None where torch comes with an older one, or has not shown it to others."""

_SOFT = 1
"""`omp_pause_soft` of omp.h: what threads hold stays as it is."""


def end_openmp_threads() -> None:
    """End OpenMP's threads of the calling thread; the next operation that is split starts others.

    After an operation they wait actively for some 5 ms, on cores that other threads may need. And
    with two sets of them on two cores a step of one example takes 5.5 ms instead of 3.2.
    """
    if _PAUSE is not None:
        _PAUSE(_SOFT)


class Team:
    """`threads` threads, of which the calling one is one. Only one thread may call."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._others = ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="hrm-rows")

    def run(self, works: Sequence[tuple[RowWork, int]]) -> None:
        """Have each work compute its number of rows: all rows are shared as if they were one's.

        Where rows are fewer than threads, torch splits operations too. Raises what a work raises,
        once every thread is done.
        """
        rows = sum(count for _, count in works)
        parts = min(self.threads, rows)
        if not parts:
            return
        if parts > 1:  # the cores are for the other threads, after a step over a single row
            end_openmp_threads()
        bounds = [rows * part // parts for part in range(parts + 1)]
        own, *others = itertools.pairwise(bounds)
        futures = [self._others.submit(self._run, works, *part, parts) for part in others]
        try:
            self._run(works, *own, parts)
        finally:
            wait(futures)
        for future in futures:
            future.result()

    def close(self) -> None:
        """End the threads."""
        self._others.shutdown()

    @torch.inference_mode()
    def _run(self, works: Sequence[tuple[RowWork, int]], first: int, end: int, parts: int) -> None:
        """Compute these of all rows."""
        torch.set_num_threads(self.threads // parts)  # of this thread
        for work, count in works:
            if first < count and end > 0:
                work(max(first, 0), min(end, count))
            first, end = first - count, end - count
