"""The folder of a run: claimed before any work, and read to go on.

Knows the names of its files and what may be replaced; nothing of their content beside the saved
steps.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hrm.checkpoint import CheckpointError
from hrm.checkpoint.names import other_weights
from hrm.training.state import SavedStep, read_step, step_folders

CURVE = "curve.jsonl"
"""One `StepReport` per line."""

PLOT = "training.png"

SEEDS = "seeds.json"
"""The file of a folder with several runs (`hrm.training.seeds`)."""


def latest_step(folder: Path) -> SavedStep:
    """The latest saved step of the run in `folder`. Raises `CheckpointError`."""
    found = step_folders(folder)
    if not found:
        raise CheckpointError(f"{folder}: holds no step_N of a training: start without --resume")
    return read_step(found[-1])


def claim_folder(folder: Path, *, resume: bool) -> None:
    """Make sure, before any work, that a run can be written to `folder` and spoils nothing there.

    A checkpoint without saved steps will be replaced. Raises `CheckpointError`.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        others = other_weights(folder)
        steps = [] if resume else step_folders(folder)
        if not resume and (folder / SEEDS).exists():
            steps.append(folder / SEEDS)
    if others:
        raise CheckpointError(f"{folder}: holds {others[0].name}: choose another folder")
    if steps:
        raise CheckpointError(
            f"{folder}: holds {steps[-1].name} of a training: go on with --resume, or choose "
            "another folder"
        )


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an `OSError` into a `CheckpointError` that names `folder`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror}): choose another folder, or make room"
        ) from None
