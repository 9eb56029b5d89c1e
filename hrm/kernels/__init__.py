"""Faster forms of the network's levels and blocks, with the same results up to rounding.

Knows blocks and devices; nothing of the order in which `HRM.step` applies the blocks.
"""

import logging
import math
import time
from weakref import WeakKeyDictionary

import torch

from hrm.kernels import cpu, cuda
from hrm.kernels.int8 import emulate
from hrm.model.network import HRM, Linear

__all__ = [
    "accelerate",
    "describe",
    "fastest_dtype",
    "product_dtype",
    "without_int8",
]

logger = logging.getLogger(__name__)

FASTER = 1.3
"""Speed-up from which a CPU computes in a dtype that rounds more coarsely: in bfloat16 instead of
float32, in int8 instead of either."""

_described: WeakKeyDictionary[HRM, str] = WeakKeyDictionary()

_product_dtypes: WeakKeyDictionary[HRM, torch.dtype] = WeakKeyDictionary()


def accelerate(network: HRM, *, int8: bool = False, emulated: bool = False) -> HRM:
    """Replace the blocks of `network` by their fastest form on its device, and return `network`.

    The result is for inference only, and must stay on its device: weights lose their gradients and
    are cast to the forward dtype, and weights of replaced blocks leave the state dict. If there is
    no faster form, the blocks stay as they are. A line in the log says which form is used, and why.

    Args:
        network: The network.
        int8: Whether the levels' linear maps compute in int8, which rounds more coarsely than
            bfloat16, if the device can. Everything else keeps the forward dtype, float32.
        emulated: Whether plain torch computes int8, slowly, if the device cannot.
    """
    if network in _described:
        return network
    _cast(network)
    dtype = network.forward_dtype
    reason = without_int8(network) if int8 else None
    if reason and emulated:
        dtype, used = torch.int8, _emulated(network)
    else:
        if reason:
            logger.warning("dtype %s, not int8: %s", _name(dtype), reason)
        elif int8:
            dtype = torch.int8
        used = _accelerated(network, dtype)
    _product_dtypes[network] = dtype
    _described[network] = f"{used}; {_name(dtype)}"
    logger.info("kernels: %s", describe(network))
    return network


def describe(network: HRM) -> str:
    """Description of the blocks' form, for example `C++ (g++ 12.2.0); bfloat16`."""
    return _described.get(network, f"plain torch; {_name(network.forward_dtype)}")


def product_dtype(network: HRM) -> torch.dtype:
    """Dtype of the products in the levels of `network`: its forward dtype, or int8."""
    return _product_dtypes.get(network, network.forward_dtype)


def fastest_dtype(device: torch.device | str) -> torch.dtype:
    """Choose float32, or bfloat16 if `device` is sufficiently faster in it; the log says why.

    A GPU is judged by its compute capability; a CPU is measured, which takes about 0.1 s.
    """
    device = torch.device(device)
    fast, reason = False, f"every {device.type} device supports it"
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


def without_int8(network: HRM) -> str | None:
    """Reason why the levels of `network` cannot multiply in int8 on its device, or None."""
    device = network.H_init.device.type
    return cpu.without_int8(network) if device == "cpu" else f"there is no int8 for {device}"


def _accelerated(network: HRM, dtype: torch.dtype) -> str:
    """Replace the blocks of `network` by their fastest form for `dtype`, and describe it."""
    match network.H_init.device.type:
        case "cpu":
            return cpu.accelerate(network, dtype)
        case "cuda":
            return cuda.accelerate(network)
        case device:
            return f"plain torch, because there is no faster form for {device}"


def _emulated(network: HRM) -> str:
    """Let plain torch compute the levels in int8, rounding no less than kernels do."""
    for level in (network.H_level, network.L_level):
        emulate(level, inner=torch.bfloat16)
    return "plain torch that emulates kernels"


def _cast(network: HRM) -> None:
    """Cast all weights to the forward dtype once, instead of at each call.

    The puzzle table keeps its dtype: it is large, and few of its rows are read.
    """
    dtype = network.forward_dtype
    network.requires_grad_(False)
    network.H_init, network.L_init = network.H_init.to(dtype), network.L_init.to(dtype)
    for name, module in network.named_children():
        if name != "puzzle_emb":
            module.to(dtype)


@torch.inference_mode()
def _speed_ratio() -> float:
    """Speed of a matrix product of typical size on the CPU in bfloat16, relative to float32.

    Measured with one thread and with the dtypes in turn, so that other programs on the processor
    hardly affect the ratio.
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
