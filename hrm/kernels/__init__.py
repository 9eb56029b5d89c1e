"""Faster forms of the network's levels and blocks: the same numbers but for rounding.

Knows blocks and devices; which blocks are applied when is said by `HRM.step` alone.
"""

import logging
import math
import time
from weakref import WeakKeyDictionary

import torch

from hrm.kernels import cpu, cuda
from hrm.model.network import HRM, Linear

__all__ = ["accelerate", "describe", "fastest_dtype"]

logger = logging.getLogger(__name__)

FASTER = 1.3
"""A CPU computes in bfloat16 if that is so many times as fast as float32: it rounds more."""

_described: WeakKeyDictionary[HRM, str] = WeakKeyDictionary()


def accelerate(network: HRM) -> HRM:
    """`network` itself, with its blocks replaced by the fastest form that its device has.

    For inference only, and on the device where it is: weights lose their gradients and take the
    forward dtype, and those of replaced blocks leave the state dict. Where a faster form is not to
    be had, the blocks stay as they are; a line of the log says what is used, and why.
    """
    if network in _described:
        return network
    _cast(network)
    match network.H_init.device.type:
        case "cpu":
            used = cpu.accelerate(network)
        case "cuda":
            used = cuda.accelerate(network)
        case device:
            used = f"plain torch, because there is no other form for {device}"
    _described[network] = f"{used}; {_name(network.forward_dtype)}"
    logger.info("kernels: %s", describe(network))
    return network


def describe(network: HRM) -> str:
    """What computes the blocks: say, `C++ (g++ 12.2.0); bfloat16`."""
    return _described.get(network, f"plain torch; {_name(network.forward_dtype)}")


def fastest_dtype(device: torch.device | str) -> torch.dtype:
    """float32, or bfloat16 where `device` computes in it enough faster; the log says why.

    A GPU is asked what it has; a CPU is measured, in about 0.1 s.
    """
    device = torch.device(device)
    fast, reason = False, f"it suits every {device.type}"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        fast = capability >= (8, 0)
        reason = f"compute capability is {capability[0]}.{capability[1]}"
    elif device.type == "cpu":
        if cpu.can_pack(torch.bfloat16):
            ratio = _speed_ratio()
            fast = ratio >= FASTER
            reason = f"products run {ratio:.1f} times as fast in bfloat16 as in float32 here"
        else:
            reason = "this processor has no bfloat16"
    dtype = torch.bfloat16 if fast else torch.float32
    logger.info("dtype %s: %s", _name(dtype), reason)
    return dtype


def _cast(network: HRM) -> None:
    """Give all weights the forward dtype, so that it is not done at each call.

    The puzzle table keeps its own: it is large, and few of its rows are read.
    """
    dtype = network.forward_dtype
    network.requires_grad_(False)
    network.H_init, network.L_init = network.H_init.to(dtype), network.L_init.to(dtype)
    for name, module in network.named_children():
        if name != "puzzle_emb":
            module.to(dtype)


@torch.inference_mode()
def _speed_ratio() -> float:
    """How many times as fast as in float32 a product of the usual size is in bfloat16, on the CPU.

    By one thread and in turns: that finds the same while other programs use the processor.
    """
    rows, inputs, outputs = 128, 256, 1536
    operands, best = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        linear = Linear(inputs, outputs).to(dtype)
        product = cpu.PackedLinear(linear) if cpu.can_pack(dtype) else linear
        operands[dtype] = product, torch.ones(rows, inputs, dtype=dtype)
        best[dtype] = math.inf
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(6):
            for dtype, (product, x) in operands.items():
                start = time.perf_counter()
                product(x)
                best[dtype] = min(best[dtype], time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return best[torch.float32] / best[torch.bfloat16]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
