"""Finds checkpoints on disk by their names, and the weights file in each.

Knows names and folders; reads no file and imports no torch, so that a command can refuse a
checkpoint before it starts anything.
"""

import os
import re
from pathlib import Path

from schemas import SQEHRMError

SHIPPED = Path(__file__).parents[1] / "shipped"
"""The checkpoints that every install has. In a checkout this is a link to `checkpoints/`."""

WEIGHTS = "model.safetensors"
"""The file in a checkpoint folder that this project writes."""

NAME_PREFIX = "checkpoints_hrm_v9_optimized_"
"""Under which the v9 checkpoints were published; may be left out of a name."""

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

_FORMS = (".safetensors", ".pt", "")
"""What may follow the name of a checkpoint that is a single file."""

_MAX_LISTED = 8
"""Names in one error line."""

_MAX_NAME = 80
"""Characters of a name in one error line."""


class CheckpointError(SQEHRMError):
    """A checkpoint that cannot be found, read, trusted or written."""


def find_checkpoint(name: str, folder: Path) -> Path:
    """The file or folder that `name` means: a path, a name in `folder`, or a shipped checkpoint.

    A bare name is looked up in `folder` first, then as a path, and last among the shipped
    checkpoints. In both folders it is tried as `NAME/`, `NAME.safetensors`, `NAME.pt` and `NAME`,
    then as the same with the prefix `checkpoints_hrm_v9_optimized_`. Raises `CheckpointError`.
    """
    path = Path(name)
    # What has a folder in it, and `.` and `..`, can only be a path.
    is_bare = path.parts == (name,) and name != ".."
    try:
        if is_bare and (found := _named(name, folder)):
            return found
        if name and path.exists():
            return path
        if is_bare and (found := _named(name, SHIPPED)):
            return found
        problem = _not_found(name, folder) if is_bare else _no_path(name)
    except OSError as error:
        problem = f"no checkpoint {name[:_MAX_NAME]!r}: {error.strerror}: name another path"
    raise CheckpointError(problem)


def checkpoint_name(path: Path) -> str:
    """What the checkpoint at `path` is called, however its file is named or packed."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would also follow links
    name = path.name.removesuffix(path.suffix if path.suffix in _SUFFIXES else "")
    if path.is_file() and name == Path(WEIGHTS).stem:
        name = path.parent.name
    return name.removeprefix(NAME_PREFIX)


def weights_file(path: Path) -> Path:
    """The weights file of the checkpoint at `path`: the file itself, or the one in the folder.

    In a folder that is `model.safetensors`, else `model.pt`, else the only weights file. Raises
    `CheckpointError`.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder: name an existing checkpoint")
    found = _weights_in(path)
    for name in (WEIGHTS, "model.pt"):
        if path / name in found:
            return path / name
    if not found:
        raise CheckpointError(f"{path}: no weights in this folder: put {WEIGHTS} there")
    if len(found) > 1:
        names = _listed([file.name for file in found])
        raise CheckpointError(f"{path}: several weights files ({names}): name one of them")
    return found[0]


def other_weights(folder: Path) -> list[Path]:
    """Weights in `folder` beside `model.safetensors`, the one this project writes."""
    return [file for file in _weights_in(folder) if file.name != WEIGHTS]


def _named(name: str, folder: Path) -> Path | None:
    """What `name` means in `folder`."""
    for stem in (name, NAME_PREFIX + name):
        if (folder / stem).is_dir():
            return folder / stem
        for form in _FORMS:
            if (folder / f"{stem}{form}").is_file():
                return folder / f"{stem}{form}"
    return None


def _not_found(name: str, folder: Path) -> str:
    tried = ", ".join(f"{name}{form}" for form in ("/", *_FORMS))
    looked = [_contents(folder.resolve()), f"{Path(name).absolute()} does not exist"]
    # They are the same for who runs a command in the checkout.
    if SHIPPED.resolve() != folder.resolve():
        looked.append(_contents(SHIPPED))
    return (
        f"no checkpoint {name!r} (tried {tried}, and each with the prefix {NAME_PREFIX}): "
        f"{'; '.join(looked)}: name one of these or a path"
    )


def _no_path(name: str) -> str:
    at = Path(name).absolute() if name else "''"
    return f"no checkpoint at {at}: name an existing file or folder"


def _contents(folder: Path) -> str:
    """What is in a checkpoint folder, or why nothing is."""
    if not folder.exists():
        return f"{folder} does not exist"
    if not folder.is_dir():
        return f"{folder} is not a folder"
    folders = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    names = [f"{name}/" for name in folders if not name.startswith(".")]
    names += [file.name for file in _weights_in(folder)]
    return f"{folder} holds {_listed(names) if names else 'no checkpoint'}"


def _weights_in(folder: Path) -> list[Path]:
    """Weights files; the reference names its own `step_N`, without a suffix."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file()
        and not file.name.startswith(".")
        and (file.suffix in _SUFFIXES or re.fullmatch(r".*step_\d+", file.name))
    )


def _listed(names: list[str]) -> str:
    shown = names[:_MAX_LISTED]
    if len(names) > _MAX_LISTED:
        shown.append(f"and {len(names) - _MAX_LISTED} more")
    return ", ".join(shown)
