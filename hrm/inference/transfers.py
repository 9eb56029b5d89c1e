"""Copies between a device and the host, neither of which waits for the other.

On the CPU there is nothing to copy, and every function here returns the tensor it is given.
"""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy the host's `tensor` to `device`, queued there behind the work given to it before."""
    if device.type == "cpu":
        return tensor
    # A copy from pinned memory runs beside the host's own work. torch does not reuse that memory
    # before the copy is done.
    return tensor.pin_memory().to(device, non_blocking=True)


class ToHost:
    """A copy of a device's tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> Tensor:
        """Wait until the device has computed and sent the tensor, and return it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor
