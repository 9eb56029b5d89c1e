"""Devices that are lost, and engines that hang, under a real engine."""

import signal
import sys
from pathlib import Path
from typing import Any

from tests.faults.ledger import Row
from tests.faults.scenarios.size import Size
from tests.faults.scenarios.workers import scene
from tests.support.networks import saved_for_messages
from tests.support.processes import REAL
from worker.process.shutdown import BROKEN

FAULTY = (sys.executable, "-m", "tests.support.faulty_worker")

STALL_SECONDS = 2


def known(number: int) -> str:
    return f"known {number % 20}"


def known_or_new(number: int) -> str:
    return f"new {number}" if number % 2 else known(number)


def lost(folder: Path, size: Size) -> Row:
    """The device answers every step with a CUDA error; the cache still answers."""
    return _failing(folder, size, "lost", "the device failed: CUDA error: an illegal memory access")


def hung(folder: Path, size: Size) -> Row:
    """The device never finishes a step again; the cache still answers."""
    reason = f"the engine has not finished a step for {STALL_SECONDS} s"
    return _failing(folder, size, "hangs", reason)


def _failing(folder: Path, size: Size, fault: str, reason: str) -> Row:
    checkpoint = saved_for_messages(folder / "tiny")
    settings: dict[str, Any] = {
        "checkpoint_dir": checkpoint.parent,
        "visibility_timeout": 60,  # the failing worker gives its messages back
        "stall_seconds": STALL_SECONDS,
    }
    with scene(folder) as at:
        for _ in range(size.repetitions):
            worker = at.start("--checkpoint", "tiny", command=FAULTY, **settings)
            worker.wait_until_ready()
            at.send(size.messages, prompts=known)
            at.drain()
            (folder / "fault").write_text(fault)
            at.send(size.messages, prompts=known_or_new)
            assert worker.wait() == BROKEN
            at.gone(worker)
            errors = [line for line in worker.log.read_text().splitlines() if " ERROR " in line]
            assert len(errors) == 1
            assert f"this worker cannot go on: {reason}" in errors[0]
            assert at.in_hand == 0, "given back, without waiting for the visibility timeout"
            (folder / "fault").unlink()
            end = at.fault_ended()
            worker = at.start("--checkpoint", "tiny", command=REAL, **settings)
            at.consumes_again(end)
            at.drain()
            at.stop(worker, signal.SIGKILL)  # it has nothing in hand
        return at.close(size.repetitions)
