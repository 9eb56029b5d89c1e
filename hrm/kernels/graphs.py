"""Steps captured once for a few fixed batch sizes and replayed, each as a single launch.

A step consists of some two hundred small kernels. For a few rows, a host takes longer to launch
them one by one than a GPU takes to run them. A CUDA graph launches them all at once, but only with
the shapes and memory that it was captured with. So steps compute on rows of fixed memory, in the
smallest of a few batch sizes that holds the rows in work.
"""

from collections.abc import Callable
from functools import partial

import torch

Launch = Callable[[], None]
Capture = Callable[[Launch], Launch]
"""Captures work on a device, and returns a function that makes the device repeat it."""

WARM_UP_RUNS = 3
"""Runs before a capture, so that kernels compiled or chosen on first use are ready."""


def sizes(capacity: int) -> list[int]:
    """Batch sizes in ascending order, up to and including `capacity`.

    Each size is at most twice the one before. From 8 on it is at most 1.5 times, and from 64 on at
    most 9/8 times the one before: at most a ninth of a step over more than 64 rows is wasted on
    empty rows.
    """
    chosen = {capacity}
    for power in (2**exponent for exponent in range(capacity.bit_length())):
        parts = 8 if power >= 64 else 2 if power >= 8 else 1  # noqa: PLR2004 - see above
        chosen.update(range(power, min(2 * power, capacity), power // parts))
    return sorted(chosen)


class Graphs:
    """The function `compute` of a number of rows, captured for each size up to `capacity`."""

    def __init__(self, compute: Callable[[int], None], capacity: int, capture: Capture) -> None:
        # The largest size first, so that the smaller ones can reuse its memory.
        self._replays = {
            size: capture(partial(compute, size)) for size in reversed(sizes(capacity))
        }
        self._sizes = sorted(self._replays)

    def __call__(self, rows: int) -> None:
        """Compute the first `rows` rows, and further ones up to the next captured size."""
        self._replays[next(size for size in self._sizes if size >= rows)]()


def cuda_capture(stream: torch.cuda.Stream) -> Capture:
    """Return a function that captures on `stream`, which must be current at every replay."""
    pool = torch.cuda.graph_pool_handle()

    def capture(launch: Launch) -> Launch:
        for _ in range(WARM_UP_RUNS):
            launch()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Only calls of this thread can invalidate the capture; other threads, such as one that
        # reads the memory in use, may go on.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            launch()
        replay: Launch = graph.replay
        return replay

    return capture
