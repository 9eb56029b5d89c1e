"""A trained model on disk: found, read, checked, written and inspected.

- `names`: a checkpoint by its name or path; needs no torch
- `files`: weights in every form that users have
- `config`: configurations, from files or from the tensors' shapes
- `checkpoint`: weights, configuration and training record as one object
- `inspection`: what is in a checkpoint

May import `schemas`, `hrm.data` and `hrm.model`. What needs torch is imported when it is asked for,
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
    "pair_hash",
    "read_checkpoint",
    "save_checkpoint",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("hrm.checkpoint.checkpoint"), name)
