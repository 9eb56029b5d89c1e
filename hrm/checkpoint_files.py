"""Finds checkpoints on disk and reads the tensors in them.

Knows names, file formats and key prefixes; nothing of the network or its configuration. Nothing
in a file is ever executed: pickles are read by torch's `weights_only` reader alone.
"""

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from schemas import SQEHRMError

WEIGHTS = "model.safetensors"
"""The file in a checkpoint folder that this project writes."""

NAME_PREFIX = "checkpoints_hrm_v9_optimized_"
"""Under which the v9 checkpoints were published; may be left out of a name."""

KEY_PREFIX = "model.inner."
"""Under which the reference stores the network: its loss head and ACT wrapper."""

_KEY_PREFIXES = (f"_orig_mod.{KEY_PREFIX}", KEY_PREFIX, "inner.")
"""Also seen: a compiled model, and one saved without its loss head."""

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which trainers keep the state dict beside their own things."""

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_ZIP = b"PK\x03\x04"
_LEGACY = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
"""The number that opens what torch.save wrote before its zip format."""
_LFS = b"version https://git-lfs"
_HEAD_BYTES = 64
"""Enough to hold each of the marks above with what precedes it."""

_DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What torch's reader raises on bytes that were cut or changed, beside `UnpicklingError`."""

_MAX_LISTED = 8
"""Names in one error line."""

_MAX_DETAIL = 80
"""Characters of another library's message in one error line."""


class CheckpointError(SQEHRMError):
    """A checkpoint that cannot be found, read, trusted or written."""


def find_checkpoint(name: str, folder: Path) -> Path:
    """The file or folder that `name` means: a path, or a name in the checkpoint folder.

    A bare name is looked up as `NAME/`, `NAME.safetensors`, `NAME.pt`, `NAME`, then the same with
    the prefix `checkpoints_hrm_v9_optimized_`, and last as a path. Raises `CheckpointError`.
    """
    path = Path(name)
    tried = []
    # What has a folder in it, and `.` and `..`, can only be a path.
    if path.parts == (name,) and name != "..":
        for stem in (name, NAME_PREFIX + name):
            tried += [f"{stem}/", f"{stem}.safetensors", f"{stem}.pt", stem]
    try:
        for candidate in tried:
            here = folder / candidate
            if here.is_dir() if candidate.endswith("/") else here.is_file():
                return here
        if name and path.exists():
            return path
    except OSError as error:
        raise CheckpointError(
            f"no checkpoint {name[:_MAX_DETAIL]!r}: {error.strerror}: name another path"
        ) from None
    if not tried:
        raise CheckpointError(f"no checkpoint at {name!r}: name an existing file or folder")
    raise CheckpointError(
        f"no checkpoint {name!r}: tried {', '.join(tried)} in {folder}, "
        f"which holds {_listed(_checkpoints_in(folder))}: name one of these or a path"
    )


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


def read_state(file: Path) -> dict[str, Tensor]:
    """The tensors in `file` by their keys without prefix, on the CPU, as they are stored.

    Accepts what torch.save wrote (zip or legacy form), nested or not, and safetensors; the form
    is told by the content, not by the name. Large files are mapped, not read. Raises
    `CheckpointError` for anything else.
    """
    content = _read(file)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{file}: holds no state dict: save model.state_dict()")
    keys = [key for key in content if isinstance(key, str)]
    prefix = next((p for p in _KEY_PREFIXES if any(key.startswith(p) for key in keys)), "")
    state = {}
    for key, value in content.items():
        problem = _problem(key, value)
        if problem:
            name = ascii(key)[:_MAX_DETAIL]
            raise CheckpointError(f"{file}: {name} {problem}: save model.state_dict() alone")
        state[key.removeprefix(prefix)] = value.detach()
    if len(state) < len(content):
        raise CheckpointError(f"{file}: keys with and without {prefix!r}: keep one form")
    return state


def _read(file: Path) -> Any:  # noqa: ANN401
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    if head.startswith(_LFS):
        raise CheckpointError(f"{file}: a Git LFS pointer, not the weights: run git lfs pull")
    if head.startswith(_ZIP) or _LEGACY in head:
        # torch takes this suffix for the format and hands the path to safetensors.
        mapped = head.startswith(_ZIP) and file.suffix != ".safetensors"
        return _read_torch(file, mapped=mapped)
    if head[8:9] == b"{":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from None
    if head.startswith(b"\x80"):
        raise CheckpointError(
            f"{file}: a bare pickle, which could run code when read: write it with torch.save"
        )
    raise CheckpointError(
        f"{file}: not a checkpoint: give a safetensors file or what torch.save wrote"
    )


def _read_torch(file: Path, *, mapped: bool) -> Any:  # noqa: ANN401
    try:
        if mapped:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        with file.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The only place where torch names the function a pickle wants to call.
        wanted = re.search(r"GLOBAL ([\w.]*\w)", str(error))
        if wanted is None:
            raise CheckpointError(
                f"{file}: damaged, or holds more than tensors: "
                "copy it again, or save model.state_dict() alone"
            ) from None
        raise CheckpointError(
            f"{file}: refused, because reading it would run {wanted[1]}: "
            "save model.state_dict() alone, or as safetensors"
        ) from None
    except _DAMAGED as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{file}: truncated or damaged ({str(error)[:_MAX_DETAIL]!a}): copy it again"
    )


def _problem(key: object, value: object) -> str | None:
    if not isinstance(key, str) or not re.fullmatch(r"[\w.]+", key):
        return "is no tensor's name"
    if not isinstance(value, Tensor):
        return f"is {type(value).__name__}, not a tensor"
    if value.layout is not torch.strided or value.is_meta or value.dtype not in _DTYPES:
        return f"has no plain floating point numbers ({value.dtype})"
    # A view can claim more numbers than its file holds, and would take the memory when copied.
    if not 0 < value.nbytes <= value.untyped_storage().nbytes():
        return f"of shape {tuple(value.shape)} is not stored in full"
    return None


def _weights_in(folder: Path) -> list[Path]:
    """Weights files; the reference names its own `step_N`, without a suffix."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file()
        and not file.name.startswith(".")
        and (file.suffix in _SUFFIXES or re.fullmatch(r".*step_\d+", file.name))
    )


def _checkpoints_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    folders = [f"{entry.name}/" for entry in folder.iterdir() if entry.is_dir()]
    names = sorted(folders) + [file.name for file in _weights_in(folder)]
    return [name for name in names if not name.startswith(".")]


def _listed(names: list[str]) -> str:
    shown = names[:_MAX_LISTED]
    if len(names) > _MAX_LISTED:
        shown.append(f"and {len(names) - _MAX_LISTED} more")
    return ", ".join(shown) or "nothing"
