"""A trained model as one object: weights, configuration and training record.

Knows what a checkpoint consists of and how one is written. `hrm.checkpoint.names` finds it,
`hrm.checkpoint.files` reads its weights, `hrm.checkpoint.config` its configuration,
`hrm.checkpoint.record` and `hrm.checkpoint.pairs` have what it was trained on,
`hrm.checkpoint.figures` its figures, and `hrm.checkpoint.precision` what coarser dtypes change.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from hrm.checkpoint.config import (
    CONFIG,
    check_finite,
    check_tensors,
    config_json,
    read_configuration,
)
from hrm.checkpoint.figures import (
    FIGURES,
    MEASURED,
    Evidence,
    RecordedFigures,
    halting_evidence,
    read_figures,
    read_training_day,
)
from hrm.checkpoint.files import KEY_PREFIX, read_state
from hrm.checkpoint.names import (
    WEIGHTS,
    CheckpointError,
    Found,
    checkpoint_name,
    find_checkpoint,
    look_up,
    other_weights,
    promoted_path,
    weights_file,
)
from hrm.checkpoint.pairs import AcceptedPairs
from hrm.checkpoint.precision import PRECISION, RecordedPrecision, read_precision
from hrm.checkpoint.record import TRAINING_PAIRS, TrainingRecord, pair_hash, read_record
from hrm.checkpoint.registry import Promoted
from hrm.checkpoint.solved import ACCEPTED_PAIRS, unusable_pairs
from hrm.data.config import ConversionConfig
from hrm.model.config import HRMConfig
from hrm.model.network import HRM

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "TrainingRecord",
    "find_checkpoint",
    "load_checkpoint",
    "open_checkpoint",
    "pair_hash",
    "read_checkpoint",
    "save_checkpoint",
]


RECORDS = (TRAINING_PAIRS, ACCEPTED_PAIRS, FIGURES, PRECISION, MEASURED)
"""Files beside the weights that say what they were trained on, and how good they are."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model as it was read: nothing was changed, and the tensors fit the configuration."""

    name: str
    path: Path
    """The weights file."""
    config: HRMConfig
    conversion: ConversionConfig
    config_sources: Mapping[str, str]
    """Source of each field of `config` and `conversion`: a file name, `tensor shapes` or
    `default`."""
    state: Mapping[str, Tensor]
    """Tensors by the keys of `HRM.state_dict()`; on the CPU, in the dtypes they are stored in."""
    digest: str
    """SHA-256 of weights and configuration; independent of the file format."""
    training: TrainingRecord | None
    figures: RecordedFigures | None
    """How good these weights were measured to be; None if nobody recorded it."""
    precision: RecordedPrecision | None
    """Which verdicts coarser dtypes change; None if nobody recorded it."""
    trained_on: date | None
    """Day of its training, if that is recorded."""

    def build(
        self, *, device: torch.device | str = "cpu", forward_dtype: torch.dtype = torch.float32
    ) -> HRM:
        """Build the network with these weights, as float32, on `device` and in evaluation mode."""
        network = HRM(self.config, forward_dtype)
        network.load_state_dict(self.state)
        return network.to(device).eval()

    def halting_evidence(self, max_steps: int | None = None) -> Evidence:
        """The halting rule that the figures support for a limit of `max_steps`, and why."""
        return halting_evidence(self.figures, max_steps)

    def records_digest(self) -> str:
        """SHA-256 of the records beside the weights as they are now, which `digest` leaves out.

        Raises `CheckpointError` if one cannot be read.
        """
        digest = hashlib.sha256()
        for file in (self.path.parent / name for name in RECORDS):
            try:
                content = file.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
            digest.update(f"{file.name} {len(content)}\n".encode() + content)
        return digest.hexdigest()

    def accepted_pairs(self) -> AcceptedPairs | None:
        """Read the accepted pairs beside the weights; None if the folder has none.

        They are read on request, because only training, promotion, workers, `record` and `inspect`
        need them.

        Raises:
            CheckpointError: The file is damaged, or its pairs are not those of the record.
        """
        file = self.path.parent / ACCEPTED_PAIRS
        pairs = AcceptedPairs.read(file, self.config.vocab_size)
        record = self.training
        if pairs is not None and record is not None and pairs.pair_hashes() != record.pair_hashes:
            raise unusable_pairs(file, f"its pairs are not those of {TRAINING_PAIRS}")
        return pairs


def load_checkpoint(path: Path) -> Checkpoint:
    """Load and check the checkpoint in the file or folder `path`.

    Nothing in the file is executed. Every tensor of the configuration is present, finite, and has
    the right shape.

    Raises:
        CheckpointError: The checkpoint cannot be found, read or trusted.
    """
    checkpoint = read_checkpoint(path)
    check_finite(checkpoint.state, checkpoint.path)
    return checkpoint


def open_checkpoint(name: str, folder: Path, *, damaged: bool = False) -> Checkpoint:
    """Find a checkpoint as `find_checkpoint` does, and load it.

    Args:
        name: Its path, or its name in `folder`. If it is `current`, the weights have to be those
            that were promoted.
        folder: The checkpoint folder.
        damaged: Whether NaN and infinite numbers pass, for inspection.

    Raises:
        CheckpointError: The checkpoint cannot be found, read or trusted.
        RegistryError: The registry of `folder` cannot be read.
    """
    found = look_up(name, folder)
    checkpoint = read_checkpoint(found.path) if damaged else load_checkpoint(found.path)
    check_promoted(checkpoint, found)
    return checkpoint


def check_promoted(checkpoint: Checkpoint, found: Found) -> None:
    """Raise `CheckpointError` if `checkpoint` is not what was promoted, though named so."""
    promoted = found.promoted
    if promoted is not None and checkpoint.digest != promoted.digest:
        raise CheckpointError(
            f"{found.path}: holds {checkpoint.digest[:12]}, but {promoted} was promoted: restore "
            "it, go back with sqe-hrm checkpoint rollback, or promote another with --over"
        )


class PromotedState(StrEnum):
    """State of a promoted checkpoint's weights."""

    KEPT = "kept"
    GONE = "gone"
    CHANGED = "changed"
    """The folder holds other weights."""
    UNREADABLE = "unreadable"


def promoted_state(promoted: Promoted, folder: Path) -> PromotedState:
    """Whether the checkpoint folder `folder` still has the weights that were promoted."""
    path = promoted_path(promoted, folder)
    if path is None:
        return PromotedState.GONE
    try:
        digest = read_checkpoint(path).digest
    except CheckpointError:
        return PromotedState.UNREADABLE
    return PromotedState.KEPT if digest == promoted.digest else PromotedState.CHANGED


def read_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint for inspection: as `load_checkpoint`, but NaN and infinite numbers pass."""
    weights = weights_file(path)
    state = read_state(weights)
    configuration = read_configuration(weights, state)
    digest = _digest(state, configuration.model, configuration.conversion)
    return Checkpoint(
        name=checkpoint_name(path),
        path=weights,
        config=configuration.model,
        conversion=configuration.conversion,
        config_sources=configuration.sources,
        state=state,
        digest=digest,
        training=_read_training(weights.parent / TRAINING_PAIRS, configuration.model),
        figures=read_figures(weights.parent / FIGURES, digest),
        precision=read_precision(weights.parent / PRECISION, digest),
        trained_on=read_training_day(weights.parent / MEASURED),
    )


def save_checkpoint(
    folder: Path,
    network_state: Mapping[str, Tensor],
    config: HRMConfig,
    conversion: ConversionConfig,
    training: TrainingRecord | None,
    pairs: AcceptedPairs | None = None,
) -> None:
    """Write a checkpoint folder, replacing an earlier one, its recorded figures and precision.

    A crash leaves the old checkpoint, the new one, or a folder without weights, never a mixture
    that loads.

    Args:
        folder: The checkpoint's folder; created if needed.
        network_state: `HRM.state_dict()`, on any device.
        config: Sizes of the network.
        conversion: How messages become examples for this network.
        training: Record of the training data; None removes an earlier record.
        pairs: The accepted pairs that the record is of; None removes earlier ones.

    Raises:
        CheckpointError: The tensors do not fit `config` or are not finite, or the folder cannot be
            written.
    """
    others = other_weights(folder) if folder.is_dir() else []
    if others:
        raise CheckpointError(f"{folder}: holds {others[0].name}: choose another folder")
    weights = folder / WEIGHTS
    check_tensors(network_state, config, weights, CONFIG)
    check_finite(network_state, weights)
    tensors = {
        KEY_PREFIX + key: tensor.detach().cpu().contiguous()
        for key, tensor in network_state.items()
    }
    # Hidden, so that it does not count as a weights file before it is renamed.
    partial = folder / f".{WEIGHTS}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial)
        _sync(partial)
        # Weights are removed first and written last: without them the folder does not load.
        weights.unlink(missing_ok=True)
        (folder / FIGURES).unlink(missing_ok=True)
        (folder / PRECISION).unlink(missing_ok=True)
        _sync(folder)
        _write(folder / CONFIG, config_json(config, conversion))
        if training is None:
            (folder / TRAINING_PAIRS).unlink(missing_ok=True)
        else:
            _write(folder / TRAINING_PAIRS, training.to_json() + "\n")
        (folder / ACCEPTED_PAIRS).unlink(missing_ok=True)
        if pairs is not None:
            pairs.write(folder / ACCEPTED_PAIRS)
            _sync(folder / ACCEPTED_PAIRS)
        _sync(folder)
        # safetensors creates files that only the owner can read: give the weights the mode of the
        # other files.
        partial.chmod((folder / CONFIG).stat().st_mode & 0o777)
        partial.replace(weights)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written ({error}): choose another") from None


def _read_training(file: Path, config: HRMConfig) -> TrainingRecord | None:
    """The record in `file`, whose answers are in rows that the puzzle table has."""
    record = read_record(file)
    table = config.num_puzzle_identifiers if config.puzzle_emb_ndim else 0
    answers = {} if record is None else record.answers
    last = max((max(rows.values()) for rows in answers.values()), default=-1)
    if last >= table:
        raise CheckpointError(
            f"{file}: accepted.answers: puzzle row {last}, but the table has {table} rows: "
            "restore the file of these weights, or remove it to go without"
        )
    return record


def _digest(state: Mapping[str, Tensor], config: HRMConfig, conversion: ConversionConfig) -> str:
    digest = hashlib.sha256(config_json(config, conversion).encode())
    for key in sorted(state):
        tensor = state[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    _sync(file)


def _sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to disk before anything that follows."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
