"""Copies between a device and the host that do not make either wait for the other.

On the CPU there is nothing to copy, and every function here hands on what it is given.
"""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, of the host, on `device`: queued there behind the work that was given before."""
    if device.type == "cpu":
        return tensor
    # From pinned memory a copy runs beside the host's own work. torch does not use that memory
    # again before the copy is through.
    return tensor.pin_memory().to(device, non_blocking=True)


class ToHost:
    """A device's tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> Tensor:
        """The tensor on the host, once the device has computed and sent it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor
