"""The worker as an operator starts it, on a device that fails as soon as the file `fault` exists.

The file says how: it `hangs`, or is `lost`.
"""

import sys
import threading
from pathlib import Path
from typing import Any

import torch

from hrm.inference.lane import Lane
from worker.cli.main import cli

FAULT = Path("fault")

LOST = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported"

compute = Lane.compute


def compute_or_fail(self: Lane[Any], offset: int, first: int, end: int) -> None:
    if FAULT.exists():
        if FAULT.read_text() == "lost":
            raise torch.AcceleratorError(LOST)
        threading.Event().wait()
    compute(self, offset, first, end)


Lane.compute = compute_or_fail  # type: ignore[method-assign]
cli(["worker", *sys.argv[1:]])
