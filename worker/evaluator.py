"""The evaluator as a worker sees it; `hrm.evaluation.evaluator` has the real one.

Knows messages, verdicts and an engine's statistics; imports no torch, so that delivery and metrics
need none.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol

from hrm.inference.prediction import EngineClosedError, EngineStatistics
from schemas import HaltedBy, SQEMessage, Verdict

__all__ = [
    "EngineClosedError",
    "EngineStatistics",
    "Evaluated",
    "Evaluator",
    "Model",
    "Named",
    "Pending",
]

Evaluated = tuple[Verdict, Counter[tuple[str, str]], Sequence[int], Callable[[Verdict], str]]
"""A verdict, how often each pair (target, predicted) of different tokens occurred, the tokens of
the completion, and a function that writes the verdict as JSON, also with other times."""


class Pending(Protocol):
    """A message in the engine."""

    @property
    def message(self) -> SQEMessage: ...  # noqa: D102
    def add_done_callback(self, callback: Callable[[], object]) -> None: ...  # noqa: D102
    def result(self, timeout: float | None = None) -> Evaluated: ...  # noqa: D102


class Named(Protocol):
    """A checkpoint, or an ensemble, which has a name and a digest of its own."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102


class Evaluator(Protocol):
    """Turns messages into verdicts, with one checkpoint or several as one."""

    @property
    def checkpoint(self) -> Named: ...  # noqa: D102
    @property
    def recorded_rate(self) -> tuple[float, float, float] | None:
        """Share of accepted pairs that were solved when the checkpoint was measured.

        Low end of its interval, share and high end; None if that is not recorded.
        """

    @property
    def trained_on(self) -> date | None:
        """The day of the checkpoint's training, if that is recorded."""

    @property
    def training_tokens(self) -> Mapping[str, float]:
        """Share of each token in the completions that were trained, by its name."""

    @property
    def token_names(self) -> Sequence[str]:
        """The name of each token; hashed ones share one."""

    @property
    def device(self) -> str: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def halting(self) -> HaltedBy: ...  # noqa: D102
    @property
    def statistics(self) -> EngineStatistics: ...  # noqa: D102
    def submit(  # noqa: D102
        self,
        body: bytes | str | Mapping[str, Any],
        *,
        queued_seconds: float | None = None,
        urgent: bool = True,
    ) -> Pending: ...
    def close(self) -> None: ...  # noqa: D102
    def self_test(self) -> tuple[int, int]:
        """Compute pairs that the checkpoint is known to solve.

        Returns how many are solved, and of how many: none if the checkpoint does not say which.
        """


@dataclass(frozen=True)
class Model:
    """A checkpoint or ensemble that was read and checked, and is on no device yet."""

    name: str
    digest: str
    records: str
    """Digest of what is recorded of it: figures, accepted pairs and so on, which can change while
    the weights do not."""
    open: Callable[[], Evaluator]
    """Loads it onto the device, and starts to answer."""
