"""Signals that ask a training run to stop.

Knows signals; nothing of training, except that it can be asked to stop.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hrm.training.stop import StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, the usual end of a process, and the end of its terminal."""

SIGNALLED = 128
"""The shell's status for a program that a signal ended, less the signal's number."""


@contextmanager
def asked_by_signals(stop: StopRequest) -> Iterator[list[int]]:
    """Let each of `SIGNALS` ask `stop`; yields the numbers of those that came.

    A signal that is ignored stays so: `nohup` ignores the end of the terminal, and a shell without
    job control ignores Ctrl-C for commands in the background.
    """
    came: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        stop.ask()

    before = {number: signal.getsignal(number) for number in SIGNALS}
    heeded = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in heeded:
        signal.signal(number, on_signal)
    try:
        yield came
    finally:
        for number, handler in heeded.items():
            signal.signal(number, handler)
