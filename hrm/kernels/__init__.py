"""Faster forms of the network's levels and blocks, with the same results up to rounding.

Knows blocks and devices; nothing of the order in which `HRM.step` applies the blocks.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from weakref import WeakKeyDictionary

import torch

from hrm.kernels import cpu, cuda
from hrm.kernels.int8 import emulate
from hrm.model.config import HRMConfig
from hrm.model.network import HRM, Linear

__all__ = [
    "Gain",
    "accelerate",
    "describe",
    "fastest_dtype",
    "int8_gain",
    "product_dtype",
    "without_int8",
]

logger = logging.getLogger(__name__)

FASTER = 1.3
"""Speed-up over float32 from which a CPU computes in bfloat16, which rounds more coarsely."""

INT8_FASTER = 1.2
"""Speed-up over another dtype from which a device computes in int8. It may be smaller, because
int8 has to be shown exact besides: on a CPU, levels of width 128 gain 1.3 to 1.4 over bfloat16,
wider ones more. No GPU has been measured."""

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
            bfloat16, if the device can. The levels' state keeps the forward dtype, float32.
        emulated: Whether plain torch computes int8, slowly, if the device cannot.
    """
    if network in _described:
        return network
    _cast(network)
    dtype = network.forward_dtype
    in_int8 = _in_int8(network) if int8 else None
    if in_int8 is None:
        used = _accelerated(network)
    elif not isinstance(in_int8, str):
        dtype, used = torch.int8, in_int8()
    elif emulated:
        dtype, used = torch.int8, _emulated(network)
    else:
        logger.warning("dtype %s, not int8: %s", _name(dtype), in_int8)
        used = _accelerated(network)
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


@dataclass(frozen=True)
class Gain:
    """Whether int8 is enough faster than another dtype, and why."""

    enough: bool
    reason: str


def int8_gain(config: HRMConfig, over: torch.dtype, device: torch.device | str) -> Gain:
    """How much faster than `over` levels of `config` are in int8 on `device`.

    It is measured, once for each size. A CPU takes about 0.1 s; on a GPU the fastest forms in both
    dtypes are found first, which takes as long as `accelerate` does for both.
    """
    config = config.model_copy(update={"H_layers": 1, "num_puzzle_identifiers": 1})
    if torch.device(device).type == "cuda":
        ratio = _int8_ratio_of_gpu(config, over, device)
    else:
        config = config.model_copy(update={"L_layers": 1})
        ratio = without_int8(HRM(config).to(device)) or _int8_ratio(config, over)
    if isinstance(ratio, str):
        return Gain(enough=False, reason=ratio)
    reason = f"levels run {ratio:.1f} times as fast in int8 as in {_name(over)} here"
    return Gain(enough=ratio >= INT8_FASTER, reason=reason)


def without_int8(network: HRM) -> str | None:
    """Reason why the levels of `network` cannot multiply in int8 on its device, or None."""
    found = _in_int8(network)
    return found if isinstance(found, str) else None


def _in_int8(network: HRM) -> Callable[[], str] | str:
    """A function that replaces the blocks of `network` by a form in int8, and describes it; or the
    reason why there is no such form.
    """
    match _device_type(network):
        case "cpu":
            return cpu.without_int8(network) or partial(cpu.accelerate, network, torch.int8)
        case "cuda":
            form = cuda.int8_form(network)
            return form if isinstance(form, str) else partial(_fused_by_triton, network, form)
        case device:
            return f"there is no int8 for {device}"


def _fused_by_triton(network: HRM, form: cuda.Form) -> str:
    cuda.fuse(network, form)
    return "fused by Triton"


def _device_type(network: HRM) -> str:
    return network.H_init.device.type


def _accelerated(network: HRM) -> str:
    """Replace the blocks of `network` by their fastest form, and describe it."""
    match _device_type(network):
        case "cpu":
            return cpu.accelerate(network, network.forward_dtype)
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
    """Speed of a matrix product of typical size on the CPU in bfloat16, relative to float32."""
    rows, inputs, outputs = 128, 256, 1536
    calls = []
    for dtype in (torch.float32, torch.bfloat16):
        linear = Linear(inputs, outputs).to(dtype)
        product = cpu.PackedLinear(linear) if cpu.can_pack(dtype) else linear
        calls.append(partial(product, torch.ones(rows, inputs, dtype=dtype)))
    return _ratio(*calls)


@cache
def _int8_ratio_of_gpu(
    config: HRMConfig, over: torch.dtype, device: torch.device | str
) -> float | str:
    """Speed of a level of `config` in int8, relative to `over`; or why it is not known."""
    networks = HRM(config).to(device), HRM(config, over).to(device)
    for network in networks:
        _cast(network)
    return cuda.int8_ratio(*networks)


@cache
@torch.inference_mode()
def _int8_ratio(config: HRMConfig, over: torch.dtype) -> float:
    """Speed of a level of `config` on the CPU in int8, relative to the dtype `over`."""
    calls = []
    for dtype in (over, torch.int8):
        forward_dtype = torch.float32 if dtype == torch.int8 else dtype
        network = HRM(config, forward_dtype)
        _cast(network)
        cpu.accelerate(network, dtype)
        length = config.puzzle_emb_len + config.seq_len
        state = torch.ones(1, length, config.hidden_size, dtype=forward_dtype)
        calls.append(partial(network.L_level, state, state, network.rotary))
    return _ratio(*calls)


def _ratio(slow: Callable[[], object], fast: Callable[[], object]) -> float:
    """Speed of `fast` relative to `slow`.

    Measured with one thread and in turn, so that other programs on the processor hardly affect it.
    """
    best = [math.inf, math.inf]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(6):
            for number, call in enumerate((slow, fast)):
                start = time.perf_counter()
                call()
                best[number] = min(best[number], time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return best[0] / best[1]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
