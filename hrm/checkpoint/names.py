"""Names of checkpoints: finds them on disk, and the weights file in each.

Knows names, folders and the registry in them; reads no weights and imports no torch, so that a
command can refuse a checkpoint before it starts anything.
"""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from hrm.checkpoint.registry import CURRENT, REGISTRY, Promoted, Registry, read_registry
from schemas import SQEHRMError

SHIPPED = Path(__file__).parents[1] / "shipped"
"""The checkpoints that every installation has. In a checkout this links to `checkpoints/`."""

WEIGHTS = "model.safetensors"
"""The weights file in a checkpoint folder that this project writes."""

NAME_PREFIX = "checkpoints_hrm_v9_optimized_"
"""Prefix of the published v9 checkpoints; may be left out of a name."""

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

_FORMS = (".safetensors", ".pt", "")
"""Suffixes tried after the name of a checkpoint that is a single file."""

_MAX_LISTED = 8
"""Names listed in one error line."""

_MAX_NAME = 80
"""Characters of a name quoted in one error line."""


class CheckpointError(SQEHRMError):
    """A checkpoint cannot be found, read, trusted or written."""


class Found(NamedTuple):
    """A checkpoint that a name led to."""

    path: Path
    """Its file or folder."""
    promoted: Promoted | None = None
    """Its entry in the registry, if it was named as `current`."""


def find_checkpoint(name: str, folder: Path) -> Path:
    """Find the file or folder of a checkpoint: a path, a name in `folder`, or a shipped checkpoint.

    A bare name is looked up in `folder` first, then as a path, and last among the shipped
    checkpoints. In both folders `NAME/`, `NAME.safetensors`, `NAME.pt` and `NAME` are tried, then
    the same with the prefix `checkpoints_hrm_v9_optimized_`. `current` is the checkpoint that the
    registry of `folder` says. Raises `CheckpointError`, and `RegistryError` for the registry.
    """
    return look_up(name, folder).path


def look_up(name: str, folder: Path) -> Found:
    """As `find_checkpoint`, with what the registry says of `current`."""
    registry = read_registry(folder) if name == CURRENT else None
    if registry is not None:
        return Found(_current(registry, folder), registry.current)
    return Found(_find(name, folder))


def promoted_path(promoted: Promoted, folder: Path) -> Path | None:
    """The file or folder of a promoted checkpoint in `folder`; None if it is gone."""
    # A name that no file can have leads nowhere either.
    with suppress(OSError, ValueError):
        for parent in (folder, SHIPPED):
            if (parent / promoted.path).exists():
                return parent / promoted.path
    return None


def path_in(path: Path, folder: Path) -> str:
    """The path of a checkpoint from `folder`, or from the folder of shipped checkpoints.

    Raises `CheckpointError` if it is in neither: other processes and machines that have the folder
    would not find it.
    """
    for parent in (folder, SHIPPED):
        for own, other in (
            (Path(os.path.abspath(path)), Path(os.path.abspath(parent))),  # noqa: PTH100
            (path.resolve(), parent.resolve()),
        ):
            if own.is_relative_to(other) and own != other:
                return own.relative_to(other).as_posix()
    raise CheckpointError(
        f"{path}: not in the checkpoint folder {folder}: copy it there, where everybody who uses "
        "the folder finds it"
    )


def check_current_is_free(folder: Path) -> None:
    """Raise `CheckpointError` if a checkpoint in `folder` is called `current`."""
    other = _named(CURRENT, folder)
    if other is not None:
        raise CheckpointError(
            f"{other}: has the name of what {folder / REGISTRY} says: rename it, or name it by "
            "this path"
        )


def check_unpromoted(output: Path, folder: Path) -> None:
    """Raise `CheckpointError` if `output` holds a checkpoint that is `current` or a way back."""
    registry = read_registry(folder)
    for promoted in () if registry is None else registry.chain:
        place = (folder / promoted.path).resolve()
        if place.is_relative_to(output.resolve()):
            raise CheckpointError(
                f"{output}: holds {promoted}, which was promoted: choose another folder"
            )


def _current(registry: Registry, folder: Path) -> Path:
    check_current_is_free(folder)
    found = promoted_path(registry.current, folder)
    if found is None:
        raise CheckpointError(
            f"{folder / registry.current.path}: gone, but {registry.current} is current: restore "
            "it, go back with sqe-hrm checkpoint rollback, or promote another with --over"
        )
    return found


def _find(name: str, folder: Path) -> Path:
    path = Path(name)
    # A name with a folder in it, `.` and `..` can only be paths.
    is_bare = path.parts == (name,) and name != ".."
    try:
        if is_bare and (found := _named(name, folder)):
            return found
        if name and path.exists():
            return path
        if is_bare and (found := _named(name, SHIPPED)):
            return found
        if name == CURRENT:
            problem = (
                f"nothing is promoted in {folder.absolute()}, so there is no current checkpoint: "
                "promote one with sqe-hrm checkpoint promote NAME, or name one"
            )
        else:
            problem = _not_found(name, folder) if is_bare else _no_path(name)
    except OSError as error:
        problem = f"no checkpoint {name[:_MAX_NAME]!r}: {error.strerror}: name another path"
    raise CheckpointError(problem)


def checkpoint_name(path: Path) -> str:
    """Name of the checkpoint at `path`: without folder, suffix and prefix, whatever its format."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would also follow links
    name = path.name.removesuffix(path.suffix if path.suffix in _SUFFIXES else "")
    if path.is_file() and name == Path(WEIGHTS).stem:
        name = path.parent.name
    return name.removeprefix(NAME_PREFIX)


def weights_file(path: Path) -> Path:
    """Find the weights file of the checkpoint at `path`: the file itself, or one in the folder.

    In a folder it is `model.safetensors`, otherwise `model.pt`, otherwise the only weights file.
    Raises `CheckpointError`.
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
    """Weights files in `folder` other than `model.safetensors`, which this project writes."""
    return [file for file in _weights_in(folder) if file.name != WEIGHTS]


def _named(name: str, folder: Path) -> Path | None:
    """The checkpoint called `name` in `folder`, if there is one."""
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
    # Both are the same folder for a command that runs in the checkout.
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
    """The checkpoints in `folder`, or why there are none, in words."""
    if not folder.exists():
        return f"{folder} does not exist"
    if not folder.is_dir():
        return f"{folder} is not a folder"
    folders = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    names = [f"{name}/" for name in folders if not name.startswith(".")]
    names += [file.name for file in _weights_in(folder)]
    return f"{folder} holds {_listed(names) if names else 'no checkpoint'}"


def _weights_in(folder: Path) -> list[Path]:
    """The weights files in `folder`; the reference's are named `step_N`, without a suffix."""
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
