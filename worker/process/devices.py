"""One process, one device: pinned through the environment before torch looks at it.

Knows device names and CUDA_VISIBLE_DEVICES. Imports torch only to ask it what is there.
"""

import os
import re
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass

from schemas import SQEHRMError

VISIBLE = "CUDA_VISIBLE_DEVICES"

_CUDA = re.compile(r"cuda(?::(\d{1,3}))?")


class DeviceError(SQEHRMError):
    """The named device cannot be used."""


@dataclass(frozen=True, slots=True)
class Device:
    """A pinned device."""

    name: str
    """As the operator says: `cpu` or `cuda:N`, N among those that were visible."""
    torch_name: str
    """As torch says, which sees this one GPU and no other."""

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.torch_name != "cpu"


def pin(device: str, environ: MutableMapping[str, str] = os.environ) -> Device:
    """Let this process see `device` (`cpu`, `cuda`, `cuda:N`) and no other.

    To be called before CUDA is touched. Raises `DeviceError` for a name that is none, for a number
    beyond the visible ones, and after CUDA was touched.
    """
    if device == "cpu":
        environ[VISIBLE] = ""
        return Device("cpu", "cpu")
    match = _CUDA.fullmatch(device)
    if match is None:
        raise DeviceError(f"device {device!r}: give cpu, cuda or cuda:N")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise DeviceError(f"device {device!r}: CUDA is in use in this process already")
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
    """Make sure that torch finds the pinned GPU. Raises `DeviceError`."""
    if not device.is_cuda:
        return
    import torch  # noqa: PLC0415 - after `pin`

    if not torch.cuda.is_available():
        built = "finds no such GPU" if torch.version.cuda else "was built without CUDA"
        raise DeviceError(f"device {device.name!r}: torch {built}: use --device cpu")


def memory(device: Device) -> dict[str, int]:
    """Bytes of the GPU's memory by kind: in use by tensors, reserved by torch, and all there is."""
    if not device.is_cuda:
        return {}
    import torch  # noqa: PLC0415 - after `pin`

    return {
        "allocated": torch.cuda.memory_allocated(),
        "reserved": torch.cuda.memory_reserved(),
        "total": torch.cuda.get_device_properties(0).total_memory,
    }
