"""The `step_N` folders of a run: checkpoints from which it can be resumed.

Each is a checkpoint of the averaged weights (`hrm.checkpoint`) with its `measured.json`, and with
`training.state`: everything else that the next steps depend on. Knows files; what the tensors mean
is the subject of `hrm.training.trainer`.
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from hrm.checkpoint.figures import MEASURED
from hrm.checkpoint.pairs import AcceptedPairs
from hrm.data.config import ConversionConfig
from hrm.training.fit import Measurement
from hrm.training.options import TrainingOptions
from hrm.training.replay import Parent
from hrm.training.trainer import Trainer

STATE = "training.state"
"""Tensors as safetensors, with a `RunRecord` in their header. It is not named like weights, so that
nobody takes it for them."""

_RECORD = "record"


class RunRecord(BaseModel):
    """Inputs of a run, which must be the same when it is resumed, and its measurements so far."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    options: TrainingOptions
    data_sha256: str
    held_out_sha256: str | None
    """Hash of the held-out examples' own file, if they have one."""
    parent: Parent | None = None
    """The checkpoint that the run started from."""
    measurements: tuple[Measurement, ...] = ()
    seconds: float = 0.0
    """Seconds spent so far."""


@dataclass(frozen=True)
class Provenance:
    """The origin of a run's weights, which is saved beside them."""

    conversion: ConversionConfig
    pairs: TrainingRecord
    accepted: AcceptedPairs
    """The training messages, each once."""
    distinct: Sequence[int]
    """Numbers of the training messages that `accepted` has."""
    record: RunRecord
    about: Mapping[str, Any]
    """Facts about the run that `measured.json` holds beside the figures."""


@dataclass(frozen=True, eq=False)
class SavedStep:
    """The content of a `step_N` folder."""

    checkpoint: Checkpoint
    record: RunRecord
    state: Mapping[str, Tensor]
    """`Trainer.state_dict()`, on the CPU."""

    def restore(self, trainer: Trainer) -> None:
        """Make `trainer` continue from this step."""
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
    provenance: Provenance,
    measured: str,
) -> None:
    """Write the saved step `folder` (`step_N`) atomically, replacing an earlier one.

    After a crash the folder is either complete or absent.

    Args:
        folder: Where to write it.
        trainer: The run after step N.
        provenance: What to save beside the weights.
        measured: The text of `measured.json`.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    # Hidden until it is complete: under its name, a folder can be relied on.
    partial = folder.with_name(f".{folder.name}.partial")
    network = trainer.averaged_network
    state = {key: tensor.cpu().contiguous() for key, tensor in trainer.state_dict().items()}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        save_checkpoint(
            partial,
            network.state_dict(),
            network.config,
            provenance.conversion,
            provenance.pairs,
            provenance.accepted,
        )
        (partial / MEASURED).write_text(measured, encoding="utf-8")
        save_file(state, partial / STATE, {_RECORD: provenance.record.model_dump_json()})
        # safetensors creates files that only their owner can read; this one is as readable as the
        # rest.
        (partial / STATE).chmod((partial / MEASURED).stat().st_mode & 0o777)
        with (partial / STATE).open("rb") as file:
            os.fsync(file.fileno())
        if folder.exists():
            replaced = folder.with_name(f".{folder.name}.replaced")
            shutil.rmtree(replaced, ignore_errors=True)
            folder.replace(replaced)
            partial.replace(folder)
            shutil.rmtree(replaced)
        else:
            partial.replace(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written ({error}): make room for it") from None


def prune_steps(folder: Path, keep: int) -> None:
    """Remove all but the latest `keep` saved steps from a run's folder, and what crashes left."""
    for old in step_folders(folder)[:-keep]:
        shutil.rmtree(old)
    for left in folder.glob(".step_*.*"):
        shutil.rmtree(left, ignore_errors=True)


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
