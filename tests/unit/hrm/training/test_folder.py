"""The folder of a run is claimed before any work, and refused with the fix."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from hrm.checkpoint import CheckpointError
from hrm.training.folder import claim_folder, latest_step
from hrm.training.state import STATE
from tests.support.runs import train


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    train(folder)
    return folder


def refused(folder: Path, *, resume: bool) -> str:
    look = latest_step if resume else partial(claim_folder, resume=False)
    with pytest.raises(CheckpointError) as caught:
        look(folder)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_folder_with_a_run_is_not_started_over(unbroken: Path) -> None:
    assert refused(unbroken, resume=False) == (
        f"{unbroken}: holds step_6 of a training: go on with --resume, or choose another folder"
    )


def test_a_folder_with_other_weights_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.pt").touch()
    assert refused(tmp_path, resume=False) == f"{tmp_path}: holds mine.pt: choose another folder"


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = refused(tmp_path / "file" / "out", resume=False)
    assert "cannot be written (Not a directory)" in told


def test_resuming_without_a_saved_step_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, resume=True).startswith(f"{tmp_path}: holds no step_N")


@pytest.mark.parametrize("damage", ["truncated", "no record", "gone"])
def test_a_damaged_state_is_named(tmp_path: Path, unbroken: Path, damage: str) -> None:
    step = tmp_path / "step_6"
    shutil.copytree(unbroken / "step_6", step)
    content = (step / STATE).read_bytes()
    if damage == "truncated":
        (step / STATE).write_bytes(content[:-1])
    elif damage == "no record":
        shutil.copy(step / "model.safetensors", step / STATE)
    else:
        (step / "model.safetensors").unlink()
    told = refused(tmp_path, resume=True)
    where = step if damage == "gone" else step / STATE
    assert told.startswith(f"{where}: ")
