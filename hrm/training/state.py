"""The folders `step_N` of a training: checkpoints from which the training can go on.

Each is a checkpoint of the averaged weights (`hrm.checkpoint`) with its `measured.json`, and with
`training.state`: everything else that the next steps depend on. Knows files; what the tensors mean
is `hrm.training.trainer`'s.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hrm.checkpoint import (
    Checkpoint,
    CheckpointError,
    TrainingRecord,
    load_checkpoint,
    save_checkpoint,
)
from hrm.data.config import ConversionConfig
from hrm.training.fit import Measurement
from hrm.training.trainer import Trainer

STATE = "training.state"
"""Tensors as safetensors, with a `RunRecord` in their header. Its name is not one of weights, so
that nobody takes it for them."""

MEASURED = "measured.json"
"""The file of a checkpoint folder with what training measured and how it was run."""

_RECORD = "record"

Option = int | float | str | None


class RunRecord(BaseModel):
    """What a run was given, which has to be the same when it goes on, and what it measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    options: dict[str, Option]
    """All that decides what the steps do."""
    data_sha256: str
    held_out_sha256: str | None
    """Of the held-out examples' own file, if they have one."""
    measurements: tuple[Measurement, ...] = ()
    seconds: float = 0.0
    """Spent so far."""


@dataclass(frozen=True, eq=False)
class SavedStep:
    """A `step_N` folder as it was read."""

    checkpoint: Checkpoint
    record: RunRecord
    state: Mapping[str, Tensor]
    """`Trainer.state_dict()`, on the CPU."""

    def restore(self, trainer: Trainer) -> None:
        """Let `trainer` go on from here."""
        trainer.load_state_dict(self.state, self.checkpoint.state)


def step_folders(folder: Path) -> list[Path]:
    """The saved steps in a run's folder, the latest last."""
    found = {}
    for file in folder.glob(f"step_*/{STATE}"):
        if match := re.fullmatch(r"step_(\d+)", file.parent.name):
            found[int(match[1])] = file.parent
    return [found[step] for step in sorted(found)]


def save_step(
    folder: Path,
    trainer: Trainer,
    conversion: ConversionConfig,
    pairs: TrainingRecord,
    record: RunRecord,
    measured: str,
) -> None:
    """Write `folder`, a `step_N`, in place of what may be there: whole, or after a crash not.

    measured: the text of `measured.json`. Raises `CheckpointError` where it cannot be written.
    """
    # Hidden until it is whole: under its name, a folder can be relied on.
    partial = folder.with_name(f".{folder.name}.partial")
    network = trainer.averaged_network
    state = {key: tensor.cpu().contiguous() for key, tensor in trainer.state_dict().items()}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        save_checkpoint(partial, network.state_dict(), network.config, conversion, pairs)
        (partial / MEASURED).write_text(measured, encoding="utf-8")
        save_file(state, partial / STATE, {_RECORD: record.model_dump_json()})
        # safetensors makes its files for the owner alone; whoever may read the rest reads this.
        (partial / STATE).chmod((partial / MEASURED).stat().st_mode & 0o777)
        with (partial / STATE).open("rb") as file:
            os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written ({error}): make room for it") from None


def prune_steps(folder: Path, keep: int) -> None:
    """Remove all but the latest `keep` saved steps of a run's folder."""
    for old in step_folders(folder)[:-keep]:
        shutil.rmtree(old)


def read_step(folder: Path) -> SavedStep:
    """The saved step in `folder`. Raises `CheckpointError`."""
    checkpoint = load_checkpoint(folder)
    file = folder / STATE
    try:
        with safe_open(file, framework="pt") as stored:
            record = RunRecord.model_validate_json((stored.metadata() or {}).get(_RECORD, ""))
            state = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValidationError):
        raise CheckpointError(
            f"{file}: damaged, or of another version: remove {folder.name} to resume from an "
            "earlier step"
        ) from None
    return SavedStep(checkpoint, record, state)
