"""A trained model on disk: found, read, checked, written and inspected.

- `registry`: which checkpoint of a folder is `current`, and its history; needs no torch
- `names`: finds a checkpoint by its name or path; needs no torch
- `files`: reads weights in every supported file format
- `config`: configurations, from files or from the tensors' shapes
- `record`: the training record: pairs, and what was accepted for them; needs no torch
- `bound`: files that are bound to the weights by digest; needs no torch
- `figures`: how good the weights were measured to be, by halting rule; needs no torch
- `precision`: which verdicts coarser dtypes than float32 change; needs no torch
- `solved`: which accepted texts the weights are recorded to solve; needs no torch
- `pairs`: the accepted pairs as tokens, which training further replays
- `checkpoint`: weights, configuration and everything recorded of them as one object
- `inspection`: contents and statistics of a checkpoint

May import `schemas`, `hrm.data` and `hrm.model`. Names that need torch are imported on first use,
so that a command can find a checkpoint before it pins its device.
"""

import importlib
from typing import TYPE_CHECKING

from hrm.checkpoint.names import CheckpointError, find_checkpoint

if TYPE_CHECKING:
    from hrm.checkpoint.checkpoint import (
        Checkpoint,
        TrainingRecord,
        load_checkpoint,
        open_checkpoint,
        pair_hash,
        read_checkpoint,
        save_checkpoint,
    )

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


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("hrm.checkpoint.checkpoint"), name)
