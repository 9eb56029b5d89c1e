"""Members of tiny ensembles."""

from pathlib import Path

import torch

from hrm.checkpoint import Checkpoint, TrainingRecord, load_checkpoint, save_checkpoint
from hrm.data.config import ConversionConfig
from hrm.model.config import HRMConfig
from hrm.model.network import HRM
from tests.support.checkpoints import SHA256, TINY

WIDER = TINY.model_copy(update={"hidden_size": 32, "halt_max_steps": 4})
"""Another network for the same examples."""


def save_member(
    folder: Path,
    seed: int,
    config: HRMConfig = TINY,
    conversion: ConversionConfig = SHA256,
    record: TrainingRecord | None = None,
) -> Path:
    torch.manual_seed(seed)
    state = {key: torch.randn_like(value) for key, value in HRM(config).state_dict().items()}
    save_checkpoint(folder, state, config, conversion, record)
    return folder


def member(
    folder: Path,
    seed: int,
    config: HRMConfig = TINY,
    conversion: ConversionConfig = SHA256,
    record: TrainingRecord | None = None,
) -> Checkpoint:
    return load_checkpoint(save_member(folder, seed, config, conversion, record))
