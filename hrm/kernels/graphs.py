"""Steps of a few fixed batch sizes, captured once and replayed: what a GPU is given as one piece.

A step is some two hundred small kernels, and a host takes longer to launch them one by one than a
GPU takes to run them for a few rows. A CUDA graph launches them all at once, but only with the
shapes and the memory that it was captured with. So it computes on rows of fixed memory, for one of
a few sizes: the smallest that holds the rows in work.
"""

from collections.abc import Callable
from functools import partial

import torch

Work = Callable[[], None]
Capture = Callable[[Work], Work]
"""Takes work that a device can do, and gives what makes the device do it again."""

WARM_UP_RUNS = 3
"""Before a capture: kernels that are compiled or chosen at first use must be there by then."""


def sizes(capacity: int) -> list[int]:
    """Batch sizes up to `capacity`, which is the last: each at most twice the one before, from 8 on
    one and a half of it, and from 64 on nine eighths: of a step over more than 64 rows, at most a
    ninth is for empty ones.
    """
    chosen = {capacity}
    for power in (2**exponent for exponent in range(capacity.bit_length())):
        parts = 8 if power >= 64 else 2 if power >= 8 else 1  # noqa: PLR2004 - see above
        chosen.update(range(power, min(2 * power, capacity), power // parts))
    return sorted(chosen)


class Graphs:
    """`compute`, which takes a number of rows, captured for each size up to `capacity`."""

    def __init__(self, compute: Callable[[int], None], capacity: int, capture: Capture) -> None:
        # The largest first: the smaller ones then find their memory in what it has taken.
        self._replays = {
            size: capture(partial(compute, size)) for size in reversed(sizes(capacity))
        }
        self._sizes = sorted(self._replays)

    def __call__(self, rows: int) -> None:
        """Compute the first `rows` rows, and as many more as the next size has."""
        self._replays[next(size for size in self._sizes if size >= rows)]()


def cuda_capture(stream: torch.cuda.Stream) -> Capture:
    """Capture on `stream`, which must be the current one whenever a capture is replayed."""
    pool = torch.cuda.graph_pool_handle()

    def capture(work: Work) -> Work:
        for _ in range(WARM_UP_RUNS):
            work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process, such as one that reads how much memory is in use, may go
        # on: only what this thread does must not disturb the capture.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            work()
        replay: Work = graph.replay
        return replay

    return capture
