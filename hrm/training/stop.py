"""A request to stop a run, from a signal's handler for example.

Knows where a run can be left at once and where only between two steps; nothing of signals or files.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from schemas import SQEHRMError


class StopAskedError(Exception):
    """The run was asked to stop, and its state is that after its last step."""


class InterruptedRunError(SQEHRMError):
    """A run was stopped on request. What it had done is saved, and it can be resumed.

    Attributes:
        step: The last step, which is saved.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class StopRequest:
    """Whether a run was asked to stop."""

    def __init__(self) -> None:
        self._asked = False
        self._at_once = False

    def ask(self) -> None:
        """Ask the run to stop. To ask again changes nothing, so that saving is not disturbed.

        May be called by a signal's handler. Raises `StopAskedError` if the run can be left at once.
        """
        if not self._asked:
            self._asked = True
            if self._at_once:
                raise StopAskedError

    def check(self) -> None:
        """Raise `StopAskedError` if the run was asked to stop."""
        if self._asked:
            raise StopAskedError

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Work that changes nothing and may take minutes: it ends at once if a signal asks."""
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False
