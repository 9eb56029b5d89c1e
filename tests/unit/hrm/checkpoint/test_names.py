"""Checkpoints are found by name or path, and each has one name."""

from pathlib import Path

import pytest
from torch import Tensor

from hrm.checkpoint import CheckpointError, find_checkpoint, load_checkpoint
from hrm.checkpoint import names as checkpoint_names
from tests.support.checkpoints import TINY, state_of, store


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return state_of(TINY)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the folder of shipped checkpoints, with `demo` in it."""
    shipped = tmp_path / "shipped"
    (shipped / "demo").mkdir(parents=True)
    monkeypatch.setattr(checkpoint_names, "SHIPPED", shipped)
    return shipped


@pytest.mark.parametrize("prefix", ["", "checkpoints_hrm_v9_optimized_"])
@pytest.mark.parametrize("form", ["{}/model.safetensors", "{}.safetensors", "{}.pt", "{}"])
def test_a_name_is_tried_with_every_suffix(
    folder: Path, state: dict[str, Tensor], prefix: str, form: str
) -> None:
    file = folder / form.format(f"{prefix}step_7566")
    store(file.parent, state, file.name)
    found = find_checkpoint("step_7566", folder)
    assert found == (file.parent if "/" in form else file)
    assert load_checkpoint(found).name == "step_7566"


def test_the_first_match_for_a_name_is_taken(folder: Path) -> None:
    candidates = [
        folder / f"{prefix}a{form}"
        for prefix in ("", "checkpoints_hrm_v9_optimized_")
        for form in (".safetensors", ".pt", "")
    ]
    for file in reversed(candidates):
        file.write_text("")
        assert find_checkpoint("a", folder) == file
    candidates[2].unlink()
    candidates[2].mkdir()
    assert find_checkpoint("a", folder) == candidates[2]


def test_a_path_is_taken_as_it_is(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_text("")
    assert find_checkpoint(str(tmp_path / "mine.pt"), folder) == tmp_path / "mine.pt"
    assert find_checkpoint("./mine.pt", folder) == Path("mine.pt")
    assert find_checkpoint("mine.pt", folder) == Path("mine.pt")
    (folder / "mine.pt").write_text("")
    assert find_checkpoint("mine.pt", folder) == folder / "mine.pt"


@pytest.mark.parametrize("name", [".", "..", "checkpoints/"])
def test_a_folder_can_be_named_relative_to_here(folder: Path, name: str) -> None:
    assert find_checkpoint(name, folder).resolve() == Path(name).resolve()


def test_a_shipped_checkpoint_is_found_after_all_others(
    folder: Path, tmp_path: Path, shipped: Path
) -> None:
    assert find_checkpoint("demo", folder) == shipped / "demo"
    assert find_checkpoint("demo", tmp_path / "none") == shipped / "demo"
    (tmp_path / "demo").mkdir()
    assert find_checkpoint("demo", folder) == Path("demo")
    (folder / "demo").mkdir()
    assert find_checkpoint("demo", folder) == folder / "demo"


def test_the_shipped_checkpoints_are_those_of_the_repository() -> None:
    assert checkpoint_names.SHIPPED.resolve() == Path(__file__).parents[4] / "checkpoints"
    for name in ("sqe-demo", "sqe-demo-600", "sqe-demo-2"):
        assert load_checkpoint(checkpoint_names.SHIPPED / name).name == name


def test_an_unknown_name_says_what_was_tried_and_what_is_there(
    folder: Path, tmp_path: Path, shipped: Path
) -> None:
    (folder / "mine").mkdir()
    (folder / "step_1.pt").write_text("")
    (folder / "README.md").write_text("")
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint("step_2", Path("checkpoints"))
    assert str(caught.value) == (
        "no checkpoint 'step_2' (tried step_2/, step_2.safetensors, step_2.pt, step_2, "
        "and each with the prefix checkpoints_hrm_v9_optimized_): "
        f"{folder} holds mine/, step_1.pt; {tmp_path}/step_2 does not exist; "
        f"{shipped} holds demo/: name one of these or a path"
    )


def test_the_shipped_checkpoints_are_listed_once(folder: Path) -> None:
    (folder / "link").symlink_to(checkpoint_names.SHIPPED)
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint("step_2", folder / "link")
    assert str(caught.value).count("sqe-demo/") == 1


@pytest.mark.parametrize("name", ["", "no/such/file.pt", "/no/such/file", "a" * 5000])
def test_a_path_that_does_not_exist_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"^no checkpoint .*: name "):
        find_checkpoint(name, folder)


def test_a_path_that_does_not_exist_is_named_in_full(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=f"^no checkpoint at {folder.parent}/no/such: "):
        find_checkpoint("no/such", folder)


@pytest.mark.usefixtures("shipped")
def test_an_empty_folder_and_a_missing_one_give_different_errors(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=f": {folder} holds no checkpoint; "):
        find_checkpoint("a", folder)
    with pytest.raises(CheckpointError, match=f": {tmp_path}/none does not exist; "):
        find_checkpoint("a", Path("none"))
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=f": {tmp_path}/file is not a folder; "):
        find_checkpoint("a", tmp_path / "file")


@pytest.mark.parametrize(
    ("file", "path", "name"),
    [
        ("demo/model.safetensors", "demo", "demo"),
        ("demo/model.safetensors", "demo/model.safetensors", "demo"),
        ("demo/model.pt", "demo/../demo/model.pt", "demo"),
        ("demo/step_3", "demo", "demo"),
        ("demo/step_3", "demo/step_3", "step_3"),
        ("v1.5/model.pt", "v1.5", "v1.5"),
        (
            "checkpoints_hrm_v9_optimized_step_3.pt",
            "checkpoints_hrm_v9_optimized_step_3.pt",
            "step_3",
        ),
    ],
)
def test_a_checkpoint_has_one_name(
    folder: Path, state: dict[str, Tensor], file: str, path: str, name: str
) -> None:
    store((folder / file).parent, state, (folder / file).name)
    assert load_checkpoint(folder / path).name == name
