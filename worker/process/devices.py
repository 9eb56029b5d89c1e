"""Pin this process to one device, through the environment and before torch reads it.

Knows device names, CUDA_VISIBLE_DEVICES and memory. Imports torch only to ask about the pinned
device.
"""

import ctypes
import os
import re
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass

from schemas import SQEHRMError

VISIBLE = "CUDA_VISIBLE_DEVICES"

MEMORY_KINDS = ("allocated", "reserved", "total")
"""Kinds of bytes of a GPU's memory: used by tensors, reserved by torch, and all there are."""

_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""A function of glibc, which keeps blocks of some megabytes; None with another C library."""

_CUDA = re.compile(r"cuda(?::(\d{1,3}))?")


class DeviceError(SQEHRMError):
    """The named device cannot be used."""


@dataclass(frozen=True, slots=True)
class Device:
    """A pinned device."""

    name: str
    """The operator's name for it: `cpu` or `cuda:N`, where N counts the GPUs that were visible."""
    torch_name: str
    """torch's name for it; torch sees only this GPU."""

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.torch_name != "cpu"


def pin(device: str, environ: MutableMapping[str, str] = os.environ) -> Device:
    """Make `device` (`cpu`, `cuda` or `cuda:N`) the only one this process sees.

    Call it before anything uses CUDA. Raises `DeviceError` if the name is not a device, if its
    number is beyond the visible GPUs, or if CUDA is already in use.
    """
    if device == "cpu":
        environ[VISIBLE] = ""
        return Device("cpu", "cpu")
    match = _CUDA.fullmatch(device)
    if match is None:
        raise DeviceError(f"device {device!r}: give cpu, cuda or cuda:N")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise DeviceError(f"device {device!r}: CUDA is already in use: start a new process")
    number = int(match[1] or 0)
    visible = environ.get(VISIBLE)
    if visible is None:
        environ[VISIBLE] = str(number)
    else:
        names = [name.strip() for name in visible.split(",") if name.strip()]
        if number >= len(names):
            raise DeviceError(
                f"device {device!r}: {VISIBLE} shows {len(names)} GPUs; "
                f"{'count from 0' if names else 'unset it'}, or use --device cpu"
            )
        environ[VISIBLE] = names[number]
    return Device(f"cuda:{number}", "cuda:0")


def check(device: Device) -> None:
    """Check that torch finds the pinned GPU. Raises `DeviceError`."""
    if not device.is_cuda:
        return
    import torch  # noqa: PLC0415 - after `pin`

    if not torch.cuda.is_available():
        built = "finds no such GPU" if torch.version.cuda else "was built without CUDA"
        raise DeviceError(f"device {device.name!r}: torch {built}: use --device cpu")


def memory(device: Device) -> dict[str, int]:
    """Read the bytes of the GPU's memory: used by tensors, reserved by torch, and in total."""
    if not device.is_cuda:
        return {}
    import torch  # noqa: PLC0415 - after `pin`

    total = torch.cuda.get_device_properties(0).total_memory
    sizes = torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), total
    return dict(zip(MEMORY_KINDS, sizes, strict=True))


def release(device: Device) -> None:
    """Give memory back that was freed, and is kept for what comes later."""
    if _TRIM is not None:
        _TRIM(0)
    if device.is_cuda:
        import torch  # noqa: PLC0415 - after `pin`

        torch.cuda.empty_cache()
