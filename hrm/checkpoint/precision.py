"""The recorded precision of a checkpoint: which verdicts a coarser dtype than float32 changes.

Knows what a worker needs to decide by evidence whether a faster dtype may answer; nothing of how it
is measured, and no torch.
"""

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from hrm.checkpoint.bound import Bound, Strict, read_bound, write_bound
from schemas import HaltedBy

PRECISION = "precision.json"
"""File in a checkpoint folder that holds its `RecordedPrecision`."""

CoarseDtype = Literal["bfloat16", "int8"]
"""Names of the dtypes that are compared with float32."""

NOTHING = "no prediction, halting step or verdict changes"
"""The words of a check that found no difference."""

_Count = Annotated[int, Field(ge=0)]


class Differences(Strict):
    """The differences from float32, under one halting rule."""

    predictions: _Count = Field(description="Accepted pairs of which a predicted token differs.")
    act_steps: _Count = Field(description="Accepted pairs that halt at another step.")
    verdicts: _Count = Field(
        description="Accepted pairs and changed completions that are judged otherwise: solved "
        "instead of not, the reverse, or with another failure pattern, but for `patterns_beyond`."
    )
    patterns_beyond: _Count = Field(
        description="Changed completions that are longer than the accepted ones, and fail with "
        "another pattern. It depends on tokens beyond the accepted end, which no training teaches, "
        "as those of unknown prompts."
    )

    @property
    def none(self) -> bool:
        """Whether nothing differs that training teaches."""
        return not (self.predictions or self.act_steps or self.verdicts)


class PrecisionCheck(Strict):
    """The comparison of one dtype with float32."""

    dtype: CoarseDtype
    computed_by: str = Field(
        description="How the device computed it: kernels, or plain torch that emulates them, which "
        "equals them but for rounding."
    )
    date: date
    version: str = Field(description="Release of this project that measured.")
    max_steps: Differences
    q: Differences

    def of(self, rule: HaltedBy) -> Differences:
        """The differences under `rule`."""
        return self.q if rule is HaltedBy.Q else self.max_steps

    @property
    def changes_nothing(self) -> bool:
        """Whether no prediction, halting step or verdict differs under either halting rule."""
        return self.max_steps.none and self.q.none


class RecordedPrecision(Bound):
    """The comparison of a checkpoint's verdicts in coarser dtypes with those in float32."""

    halt_max_steps: int = Field(ge=1, description="Most ACT steps under both rules.")
    pairs: int = Field(ge=1, description="Accepted pairs: all that it was trained on.")
    changed: _Count = Field(
        description="Completions of these pairs with one change, which a drifting agent might send."
    )
    checks: tuple[PrecisionCheck, ...]

    def check_of(self, dtype: CoarseDtype) -> PrecisionCheck | None:
        """The comparison of `dtype`; None if there is none."""
        return next((each for each in self.checks if each.dtype == dtype), None)

    def summary(self, check: PrecisionCheck) -> str:
        """The changes that the dtype of `check` makes, in words."""
        found = "; ".join(
            f"under {rule} {each.predictions:,} predictions, {each.act_steps:,} halting steps and "
            f"{each.verdicts:,} verdicts change"
            for rule in (HaltedBy.MAX_STEPS, HaltedBy.Q)
            if not (each := check.of(rule)).none
        )
        beyond = max(check.of(rule).patterns_beyond for rule in HaltedBy)
        if beyond:
            found = (
                f"{found or NOTHING}; of completions longer than accepted ones, {beyond:,} fail "
                "with another pattern"
            )
        return (
            f"{found or NOTHING} ({self.pairs:,} pairs and {self.changed:,} changed completions, "
            f"by {check.computed_by})"
        )


def read_precision(file: Path, digest: str) -> RecordedPrecision | None:
    """Read the precision of the checkpoint with `digest`, as `read_bound` does."""
    return read_bound(file, RecordedPrecision, digest)


def write_precision(folder: Path, precision: RecordedPrecision) -> Path:
    """Write the precision of the checkpoint in `folder` atomically, and return its file.

    Raises `CheckpointError`.
    """
    return write_bound(folder / PRECISION, precision)
