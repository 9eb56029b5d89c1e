"""The dtype in which a checkpoint answers.

It is the one that is named, or with `auto` the fastest that is known to be exact enough.

Knows devices, and what is recorded of checkpoints; nothing of how they are compared.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from hrm.checkpoint import Checkpoint
from hrm.checkpoint.precision import RecordedPrecision
from hrm.kernels import Gain, fastest_dtype, int8_gain
from hrm.model.config import HRMConfig
from schemas import SQEHRMError

logger = logging.getLogger(__name__)

LOAD_SECONDS = 60.0
"""The most that a comparison with float32 may delay a start. The 84 messages of `sqe-demo` take
about ten seconds of a processor core."""

Compare = Callable[[Checkpoint, float], RecordedPrecision]
"""Compares the verdicts of a checkpoint in int8 with those in float32, in at most some seconds."""


@dataclass(frozen=True)
class Dtypes:
    """Chooses the dtypes of checkpoints on one device.

    Args:
        name: The dtype as torch calls it, or `auto`.
        device: The device, as torch calls it.
        compare: Used if a checkpoint does not record whether int8 changes its verdicts.
        usual: What `auto` takes on a device without int8.
        gain: How much faster than a dtype int8 is on a device, for networks of a size.
    """

    name: str
    device: str
    compare: Compare
    usual: Callable[[str], torch.dtype] = fastest_dtype
    gain: Callable[[HRMConfig, torch.dtype, str], Gain] = int8_gain

    def of(self, members: Sequence[Checkpoint], max_steps: int | None = None) -> torch.dtype:
        """The dtype for a checkpoint, or for several that answer as one.

        Args:
            members: The checkpoints.
            max_steps: ACT steps per example, or None for each checkpoint's own.
        """
        if self.name != "auto":
            dtype: torch.dtype = getattr(torch, self.name)
            return dtype
        reason = self._reason_against_int8(members, max_steps)
        if reason is None:
            return torch.int8
        logger.info("dtype auto stays with %s, not int8: %s", _name(self._usual), reason)
        return self._usual

    @cached_property
    def _usual(self) -> torch.dtype:
        """Chosen once: beside a load, another might seem faster."""
        return self.usual(self.device)

    def _reason_against_int8(
        self, members: Sequence[Checkpoint], max_steps: int | None
    ) -> str | None:
        """Why int8 is not taken; None if it is, which the log explains."""
        checkpoint, *others = members
        if others:
            return "nothing is recorded of ensembles"
        gain = self.gain(checkpoint.config, self._usual, self.device)
        if not gain.enough:
            return gain.reason
        steps = checkpoint.config.halt_max_steps
        if max_steps not in {None, steps}:
            return f"verdicts are compared with {steps} steps, not {max_steps}"
        try:
            found, changes_nothing = self._compared(checkpoint)
        except SQEHRMError as error:
            return str(error)
        if changes_nothing:
            logger.info("dtype auto chose int8: %s; %s", gain.reason, found)
            return None
        return found

    def _compared(self, checkpoint: Checkpoint) -> tuple[str, bool]:
        """The changes that int8 makes, in words, and whether there are none.

        If none of it is recorded, it is compared now, and nobody keeps the result.
        """
        precision = checkpoint.precision
        check = None if precision is None else precision.check_of("int8")
        if precision is None or check is None:
            started = time.monotonic()
            precision = self.compare(checkpoint, LOAD_SECONDS)
            (check,) = precision.checks
            logger.info(
                "checkpoint %s does not record what int8 changes: compared with float32 in %.1f s; "
                "sqe-hrm checkpoint record would keep the result",
                checkpoint.name,
                time.monotonic() - started,
            )
        return precision.summary(check), check.changes_nothing


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
