"""The network's levels for CPUs.

A level is computed entirely in C++ if the C++ has the fastest matrix products on the processor.
Otherwise torch multiplies with packed weights, and C++ computes the rest.
"""

import copy
import ctypes
from collections.abc import Callable, Iterable, Sequence
from ctypes import c_int, c_void_p
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm.kernels.compiler import (
    SWITCH,
    Kernels,
    KernelsUnavailableError,
    is_switched_off,
    kernels,
)
from hrm.kernels.int8 import quantised
from hrm.model.network import HRM, Block, Level, Linear, State

Kind = TypeVar("Kind", bound=nn.Module)

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Dtypes of activations that have C++ kernels, and the suffix of their function names."""

PRODUCT_DTYPES = {**DTYPES, torch.int8: "int8"}
"""Dtypes of a level's products that have C++ kernels, and the suffix of their function names.
Around products of int8, the level's state is float32."""

HEAD_DIMS = (16, 32, 64, 128)
"""Head sizes that the C++ attention supports."""

MULTIPLE = 16
"""Hidden and intermediate sizes must be multiples of this for the C++."""

PACKED_ROWS = 1024
"""Number of input rows that weights are packed for; products of other sizes are correct too."""


KEPT_BYTES = 256 << 20
"""Freed memory the allocator keeps instead of returning to the system: more than a step over 64
examples needs.
"""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, from glibc's malloc.h."""


def accelerate(network: HRM, dtype: torch.dtype) -> str:
    """Replace the levels of `network`, or parts of them, by faster forms.

    The weights of `network` must have its forward dtype.

    Args:
        network: The network.
        dtype: That of the levels' products: the forward dtype, or int8 if `without_int8` returns
            None.

    Returns:
        A description of the form that is used now.
    """
    keep_freed_memory()
    if is_switched_off():
        return f"plain torch, because {SWITCH} is off"
    unfit = unsupported_reason(network)
    found = KernelsUnavailableError(unfit) if unfit else kernels()
    if isinstance(found, Kernels):
        used = f"C++ ({found.compiler.label})"
        if has_level(found, dtype):
            _replace(network, Level, lambda level: FusedLevel(level, dtype, found))
            network.fused_step = FusedStep(network, dtype, found)
            return used
        _replace(network, Block, lambda block: FusedBlock(block, dtype, found))
    else:
        used = f"plain torch, because {found}"
    if can_pack(dtype):
        _replace(network, Linear, PackedLinear)
        return f"{used}; packed weights"
    if dtype == torch.bfloat16:
        _replace(network, Linear, WideLinear)
        return f"{used}; products in float32"
    return f"{used}; plain weights"


def _replace(network: HRM, kind: type[Kind], form: Callable[[Kind], nn.Module]) -> None:
    """Replace each module of type `kind` in both levels by its `form`."""
    for level in ("H_level", "L_level"):
        for name, module in list(network.get_submodule(level).named_modules(prefix=level)):
            if isinstance(module, kind):
                network.set_submodule(name, form(module))


def keep_freed_memory() -> None:
    """Make glibc's allocator, if it is in use, keep freed memory for this process.

    Otherwise it returns the memory of each matrix product's result to the system and requests it
    again page by page, which takes up to a third of a step's time in a thread.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)


def unsupported_reason(network: HRM) -> str | None:
    """Reason why neither `FusedLevel` nor `FusedBlock` supports `network`, or None."""
    config = network.config
    if network.forward_dtype not in DTYPES:
        return f"there is no C++ for {network.forward_dtype}"
    if config.pos_encodings != "rope":
        return f"there is no C++ for {config.pos_encodings} positions"
    if config.head_dim not in HEAD_DIMS:
        return f"there is no C++ for heads of {config.head_dim}"
    for size in (config.hidden_size, config.intermediate_size):
        if size % MULTIPLE:
            return f"there is no C++ for a size of {size}"
    return None


def without_int8(network: HRM) -> str | None:
    """Reason why the levels of `network` cannot multiply in int8 here, or None."""
    if is_switched_off():
        return f"{SWITCH} is off"
    unfit = unsupported_reason(network)
    if unfit:
        return unfit
    found = kernels()
    if isinstance(found, KernelsUnavailableError):
        return str(found)
    if not has_level(found, torch.int8):
        return "this processor has no products of int8 (AVX-512 VNNI or AVX-VNNI)"
    return None


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether torch can pack weights of `dtype` here.

    The functions for it are not public, so they are tried.
    """
    try:
        ops = torch.ops.mkldnn
        if dtype == torch.bfloat16 and not ops._is_mkldnn_bf16_supported():  # noqa: SLF001
            return False
        linear = Linear(MULTIPLE, MULTIPLE)
        linear.weight = nn.Parameter(torch.eye(MULTIPLE, dtype=dtype), requires_grad=False)
        return torch.equal(PackedLinear(linear)(linear.weight), linear.weight)
    except (AttributeError, RuntimeError, TypeError):
        return False


class PackedLinear(nn.Module):
    """A `Linear` for inference, with its weight in the order in which the product reads it.

    Input and output have the weight's dtype. The weight is neither a parameter nor in a state dict.
    """

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(  # noqa: SLF001
            weight, PACKED_ROWS
        )
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
            x, self._weight, self._bias, "none", [], None
        )
        return output


class WideLinear(nn.Module):
    """A `Linear` in bfloat16 for inference, for processors without instructions for it.

    The product is of float32, and rounded once, as by instructions for bfloat16, which add in
    float32. Torch's own product of bfloat16 takes ten times as long there. The weight is neither a
    parameter nor in a state dict.
    """

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        wide = copy.deepcopy(linear).float()
        self._product = (PackedLinear(wide) if can_pack(torch.float32) else wide).forward

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        return self._product(x.float()).to(x.dtype)


def has_level(kernels: Kernels, dtype: torch.dtype) -> bool:
    """Whether the C++ computes a whole level in `dtype` on this processor.

    It leaves bfloat16 to oneDNN if the processor has matrix units for it (AMX), or no instructions
    for it at all.
    """
    return hasattr(kernels.library, f"level_{PRODUCT_DTYPES[dtype]}")


class Packing:
    """The layout in which the C++ reads the weights of a product in `dtype`; needs `has_level`."""

    def __init__(self, dtype: torch.dtype, kernels: Kernels) -> None:
        self.dtype = dtype
        self.panel, self.lane, self.group = (
            c_int.in_dll(kernels.library, f"{size}_{PRODUCT_DTYPES[dtype]}").value
            for size in ("panel", "lane", "group")
        )

    def __call__(self, weight: Tensor) -> Tensor:
        """Pack (outputs, inputs) as 32-bit lanes (panels, rows, panel), contiguous.

        A row has the same lane of each output. In int8, two rows come before them: the integers
        with which sums start, and the scales of the outputs. The last panel is padded with zeros.
        """
        if self.dtype != torch.int8:
            return self._panels(self.grouped(weight.to(self.dtype))).contiguous()
        values, scales = quantised(weight)
        # Rows of activations are unsigned, with 128 for 0.
        starts = -128 * values.sum(1, keepdim=True, dtype=torch.int32)
        return torch.cat([self._panels(x) for x in (starts, scales, self.grouped(values))], dim=1)

    def grouped(self, rows: Tensor) -> Tensor:
        """Bring rows (n, inputs) into the order of lanes, padded with zeros to whole groups."""
        filled = F.pad(rows, (0, -rows.shape[1] % self.group))
        parts = filled.view(len(rows), -1, self.lane, self.group // self.lane)
        return parts.transpose(2, 3).reshape(filled.shape)

    def _panels(self, rows: Tensor) -> Tensor:
        """Rearrange (outputs, n), n of 32 bits or several parts of them, as (panels, n, panel)."""
        # Torch moves lanes seven times as fast as their parts.
        lanes = F.pad(rows.contiguous().view(torch.int32), (0, 0, 0, -len(rows) % self.panel))
        return lanes.view(-1, self.panel, lanes.shape[1]).transpose(1, 2)


def by_heads(qkv: Tensor, dim: int, panel: int) -> Tensor:
    """Bring the rows of queries, keys and values, (3 * size, inputs), together by heads.

    A group has as many heads of `dim` rows as fill whole panels: its queries come first, then its
    keys, then its values. Zeros pad the last one.
    """
    group = max(dim, panel)
    parts = qkv.view(3, -1, qkv.shape[1])
    filled = F.pad(parts, (0, 0, 0, -parts.shape[1] % group))
    return filled.view(3, -1, group, qkv.shape[1]).transpose(0, 1).flatten(0, 2)


def interleaved(gate_up: Tensor, size: int) -> Tensor:
    """Interleave the rows of gate and up, (2 * inner, inputs): `size` rows of each in turn.

    In `gate_up` all rows of the gate come first. Zeros pad both to a multiple of `size`.
    """
    halves = gate_up.view(2, -1, gate_up.shape[1])
    filled = F.pad(halves, (0, 0, 0, -halves.shape[1] % size))
    return filled.view(2, -1, size, gate_up.shape[1]).transpose(0, 1).flatten(0, 2)


def weights_of(block: Block) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weights of a block's products, each (outputs, inputs): qkv, o, gate and up, down."""
    attention, mlp = block.self_attn, block.mlp
    return (
        attention.qkv_proj.weight,
        attention.o_proj.weight,
        mlp.gate_up_proj.weight,
        mlp.down_proj.weight,
    )


class FusedLevel(nn.Module):
    """A `Level` for inference, computed entirely in C++.

    Needs a network for which `unsupported_reason` returns None, and `has_level`. The weights are
    neither parameters nor in a state dict. Threads share the rows of an example; with enough
    examples, `hrm.inference.threads` gives each thread examples of its own.

    Args:
        level: Its weights are copied.
        dtype: Dtype of products, and of the level's state, which is float32 for int8.
        kernels: The C++.
    """

    def __init__(self, level: Level, dtype: torch.dtype, kernels: Kernels) -> None:
        super().__init__()
        blocks = [block for block in level.layers if isinstance(block, Block)]
        attention = blocks[0].self_attn
        self.dtype = torch.float32 if dtype == torch.int8 else dtype
        self.eps, self.blocks = blocks[0].eps, len(blocks)
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.inner = blocks[0].mlp.down_proj.weight.shape[1]
        self._level = getattr(kernels.library, f"level_{PRODUCT_DTYPES[dtype]}")
        self._pack = Packing(dtype, kernels)
        self._weights = [
            packed
            for block in blocks
            for packed in self._packed([weight.detach() for weight in weights_of(block)])
        ]
        self.pointers = (c_void_p * len(self._weights))(*(w.data_ptr() for w in self._weights))

    def _packed(self, weights: Sequence[Tensor]) -> list[Tensor]:
        qkv, o, gate_up, down = weights
        heads = by_heads(qkv, self.head_dim, self._pack.panel)
        gates_and_ups = interleaved(gate_up, self._pack.panel // 2)
        return [self._pack(weight) for weight in (heads, o, gates_and_ups, down)]

    def refresh(self, blocks: Iterable[Sequence[Tensor]]) -> None:
        """Take over new weights: `weights_of` each block."""
        packed = [each for weights in blocks for each in self._packed(weights)]
        for own, new in zip(self._weights, packed, strict=True):
            own.copy_(new)

    def forward(
        self,
        z: Tensor,
        injection: Tensor,
        rotary: Tensor | None,
        positions: int | None = None,
    ) -> Tensor:
        """Compute the level.

        Args:
            z: The level's state, (B, T, D) of the level's dtype.
            injection: Added to `z`, of the same shape and dtype.
            rotary: Cosines and sines, float32 (2, T, head_dim).
            positions: How many leading positions of the result are wanted (default: all). The last
                block computes no more than their results need.

        Raises:
            ValueError: A tensor has another shape or dtype: C++ would read beyond its memory.
        """
        batch, length = z.shape[:2]
        table = checked_rotary(rotary, length, self.head_dim)
        size = self.num_heads * self.head_dim
        shape = (batch, length, size)
        z, injection = checked(z, shape, self.dtype), checked(injection, shape, self.dtype)
        wanted = length if positions is None else min(positions, length)
        output = z.new_empty(batch, wanted, size)
        self._level(
            z.data_ptr(),
            injection.data_ptr(),
            output.data_ptr(),
            self.pointers,
            table.data_ptr(),
            batch,
            self.blocks,
            length,
            wanted,
            self.num_heads,
            self.head_dim,
            self.inner,
            self.eps,
            torch.get_num_threads(),
        )
        return output


class FusedStep:
    """An ACT step for inference, computed by C++ in one call and in place.

    Computes the same numbers as the levels of `network` in turn, which are of `FusedLevel`. The
    rows of both states stay with their threads.
    """

    def __init__(self, network: HRM, dtype: torch.dtype, kernels: Kernels) -> None:
        H, L = network.H_level, network.L_level
        if not (isinstance(H, FusedLevel) and isinstance(L, FusedLevel)):
            raise TypeError("the levels are not fused")
        self._H, self._L, self._config, self._rotary = H, L, network.config, network.rotary
        self._step = getattr(kernels.library, f"step_{PRODUCT_DTYPES[dtype]}")

    def __call__(self, state: State, x: Tensor) -> None:
        """Compute a step from the input x and `state`, and overwrite this with the result.

        All are (B, T, D), contiguous and of the levels' dtype. Raises `ValueError` for other
        tensors: C++ would read or write beyond their memory.
        """
        H, L, config = self._H, self._L, self._config
        batch, length = x.shape[:2]
        table = checked_rotary(self._rotary, length, H.head_dim)
        shape = (batch, length, config.hidden_size)
        for each in (x, *state):
            if not each.is_contiguous():
                raise ValueError("a step in place needs contiguous tensors")
            checked(each, shape, H.dtype)
        self._step(
            x.data_ptr(),
            state.z_H.data_ptr(),
            state.z_L.data_ptr(),
            H.pointers,
            L.pointers,
            table.data_ptr(),
            batch,
            H.blocks,
            L.blocks,
            config.H_cycles,
            config.L_cycles,
            length,
            H.num_heads,
            H.head_dim,
            H.inner,
            H.eps,
            torch.get_num_threads(),
        )


def checked(x: Tensor, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Return `x`, contiguous. Raises `ValueError` if its shape, dtype or device is wrong."""
    if x.dtype != dtype or x.shape != shape or x.device.type != "cpu":
        raise ValueError(
            f"not (B, T, {shape[2]}) {dtype} on the CPU: {tuple(x.shape)} {x.dtype} {x.device}"
        )
    return x.contiguous()


def checked_rotary(rotary: Tensor | None, length: int, head_dim: int) -> Tensor:
    """Return `rotary`, contiguous. Raises `ValueError` unless it is float32 (2, T, head_dim)."""
    if rotary is None or rotary.dtype != torch.float32 or rotary.shape != (2, length, head_dim):
        raise ValueError(f"no float32 rotary table of (2, {length}, {head_dim})")
    return rotary.contiguous()


class FusedBlock(nn.Module):
    """A `Block` for inference: `block`'s own matrix products, and C++ for the rest.

    Needs a network for which `unsupported_reason` returns None.
    """

    def __init__(self, block: Block, dtype: torch.dtype, kernels: Kernels) -> None:
        super().__init__()
        attention, mlp = block.self_attn, block.mlp
        self.eps, self.dtype = block.eps, dtype
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.qkv_proj, self.o_proj = attention.qkv_proj, attention.o_proj
        self.gate_up_proj, self.down_proj = mlp.gate_up_proj, mlp.down_proj
        # `forward` is called directly: looking for hooks would cost a fifth of a small product.
        self._attention = getattr(kernels.library, f"attention_{DTYPES[dtype]}")
        self._add_norm = getattr(kernels.library, f"add_norm_{DTYPES[dtype]}")
        self._swiglu = getattr(kernels.library, f"swiglu_{DTYPES[dtype]}")

    def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        """Compute the block.

        x: (B, T, D) of the block's dtype; rotary: float32 (2, T, head_dim). Raises `ValueError` for
        other tensors: C++ would read beyond their memory.
        """
        batch, length = x.shape[:2]
        table = checked_rotary(rotary, length, self.head_dim)
        x = checked(x, (batch, length, self.num_heads * self.head_dim), self.dtype)
        x = self._normalised_sum(x, self._attend(x, table))
        return self._normalised_sum(x, self._mlp(x))

    def _attend(self, x: Tensor, rotary: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv, mixed = self.qkv_proj.forward(x), torch.empty_like(x)
        self._attention(
            qkv.data_ptr(),
            rotary.data_ptr(),
            mixed.data_ptr(),
            batch,
            length,
            self.num_heads,
            self.head_dim,
            torch.get_num_threads(),
        )
        output: Tensor = self.o_proj.forward(mixed)
        return output

    def _mlp(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up_proj.forward(x)
        rows, size = gate_up.numel() // gate_up.shape[-1], gate_up.shape[-1] // 2
        gated = gate_up.new_empty(*x.shape[:-1], size)
        self._swiglu(gate_up.data_ptr(), gated.data_ptr(), rows, size, torch.get_num_threads())
        output: Tensor = self.down_proj.forward(gated)
        return output

    def _normalised_sum(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute `rms_norm(x + y)`, overwriting `y`."""
        size = x.shape[-1]
        self._add_norm(
            x.data_ptr(),
            y.data_ptr(),
            y.data_ptr(),
            x.numel() // size,
            size,
            self.eps,
            torch.get_num_threads(),
        )
        return y
