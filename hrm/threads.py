"""Shares the rows of a batch among threads of the CPU, each of which computes its own to the end.

Knows threads and numbers of rows; nothing of networks.

torch itself splits every operation among threads, which wait for each other some two hundred times
a step. One that is kept from its core, by another process or another thread of this one, then
keeps all: with one busy process on two cores, a step of 8 rows took 1.7 times as long as shared
like this. On an idle machine both are equal to a few percent (`tests/benchmarks/RESULTS.md`).
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

Work = Callable[[int, int], None]
"""Computes the rows from the first number up to, not including, the second."""


class Team:
    """`threads` threads, of which the calling one is one. Only one thread may call."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._others = ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="hrm-rows")

    def run(self, work: Work, rows: int) -> None:
        """Have `work` compute all of `rows`, at least 1. Where rows are few, torch splits too.

        Raises what `work` raises, once every thread is done.
        """
        parts = min(self.threads, rows)
        bounds = [rows * part // parts for part in range(parts + 1)]
        own, *others = itertools.pairwise(bounds)
        futures = [self._others.submit(self._run, work, *part, parts) for part in others]
        try:
            self._run(work, *own, parts)
        finally:
            wait(futures)
        for future in futures:
            future.result()

    def close(self) -> None:
        """End the threads."""
        self._others.shutdown()

    @torch.inference_mode()
    def _run(self, work: Work, first: int, end: int, parts: int) -> None:
        torch.set_num_threads(self.threads // parts)  # of this thread
        work(first, end)
