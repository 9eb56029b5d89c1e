"""A batch's rows shared among CPU threads, each of which computes its own rows to the end.

Knows threads and numbers of rows; nothing of networks.

torch itself splits every operation among threads, and these wait for each other some two hundred
times a step, so a thread that loses its core holds up all others. Measured on two cores with 8 rows
of the default size in bfloat16, in examples a second: beside one busy process 2.9 with operations
split and 4.9 with rows shared; alone 8.0 split and 7.7 shared. OpenMP's threads also stop waiting
actively once a process has two sets of them, for example one of the thread that loads and one of
the thread that computes: then 6.3 split instead of 8.3.
"""

import ctypes
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch

RowWork = Callable[[int, int], None]
"""Computes the rows from the first number up to, but not including, the second."""

_PAUSE = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)
"""A function of OpenMP 5.0; None if torch comes with an older OpenMP or does not export it."""

_SOFT = 1
"""`omp_pause_soft` of omp.h: the threads' data is kept."""


def end_openmp_threads() -> None:
    """End the calling thread's OpenMP threads; the next operation that is split starts others.

    After an operation they wait actively for some 5 ms, on cores that other threads may need. With
    two sets of them on two cores, a step of one example takes 5.5 ms instead of 3.2.
    """
    if _PAUSE is not None:
        _PAUSE(_SOFT)


class Team:
    """A team of `threads` threads, the calling one included. Only one thread may call it."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._others = ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="hrm-rows")

    def run(self, works: Sequence[tuple[RowWork, int]]) -> None:
        """Compute all rows, shared among the threads as if they were one batch.

        If there are fewer rows than threads, torch splits operations too. An error of one thread is
        raised once all threads are done.

        Args:
            works: Each with its number of rows.
        """
        rows = sum(count for _, count in works)
        parts = min(self.threads, rows)
        if not parts:
            return
        if parts > 1:  # after a step over a single row, the cores are for this team's threads
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
        """Compute the rows from `first` up to `end`, counted over all works."""
        torch.set_num_threads(self.threads // parts)  # of this thread
        for work, count in works:
            if first < count and end > 0:
                work(max(first, 0), min(end, count))
            first, end = first - count, end - count
