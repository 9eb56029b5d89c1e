"""The tensors in a checkpoint's file.

Knows file formats and key prefixes; nothing of the network or its configuration. Nothing in a file
is ever executed: pickles are read by torch's `weights_only` reader alone.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hrm.checkpoint.names import CheckpointError

KEY_PREFIX = "model.inner."
"""Prefix of the network's keys in the reference's files: its loss head and ACT wrapper."""

_KEY_PREFIXES = (f"_orig_mod.{KEY_PREFIX}", KEY_PREFIX, "inner.")
"""Prefixes that occur: of a compiled model, the reference's, of a model without its loss head."""

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which trainers store the state dict beside their own data."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_ZIP = b"PK\x03\x04"
_LEGACY = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
"""Magic number of files that torch.save wrote before its zip format."""
_LFS = b"version https://git-lfs"
_HEAD_BYTES = 64
"""Bytes read to detect the format: enough for each of the marks above and what precedes it."""

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
"""Exceptions that torch's reader raises for truncated or changed bytes, besides
`UnpicklingError`."""

_MAX_DETAIL = 80
"""Characters quoted from another library's message in one error line."""


def read_state(file: Path) -> dict[str, Tensor]:
    """Read the tensors in `file`: by their keys without prefix, on the CPU, in their stored dtypes.

    Accepts files written by torch.save (zip or legacy format), nested or not, and safetensors. The
    content decides the format, not the file's name. Large files are mapped, not read.

    Raises:
        CheckpointError: The file is anything else.
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
        # torch trusts this suffix and hands the path to safetensors.
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
        # torch names the function that a pickle wants to call only in this message.
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
        return "is not a tensor's name"
    if not isinstance(value, Tensor):
        return f"is {type(value).__name__}, not a tensor"
    if value.layout is not torch.strided or value.is_meta or value.dtype not in _DTYPES:
        return f"has no plain floating point numbers ({value.dtype})"
    # A view can claim more numbers than its file holds, and would need that memory when copied.
    if not 0 < value.nbytes <= value.untyped_storage().nbytes():
        return f"of shape {tuple(value.shape)} is not stored in full"
    return None
