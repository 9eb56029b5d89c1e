"""The network's blocks for NVIDIA GPUs in Triton, in bfloat16. The operations between the matrix
products work on the products' sums in registers, before anything is written to memory. Those in
int8 (`cuda_int8`) have the same attention and the same limits.

Imported only if Triton is installed. No kernel depends on the number of rows: tensor descriptors
know it, read zeros past the end and write nothing there. So each kernel is compiled once, and its
launches can be captured. Kernels sum in float32, and round where a plain block does or less often.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from triton.tools.tensor_descriptor import TensorDescriptor

from hrm.model.network import HRM, Block


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


AnyTiles = TypeVar("AnyTiles", bound=Dataclass)
"""A type with a tile for each kernel of a form."""

HEAD_DIMS = (16, 32, 64, 128)
"""Head sizes that the attention kernel supports."""

LONGEST = 128
"""Largest number of positions: a program holds the scores of all keys at once."""

WIDEST = 256
"""Largest hidden size: a program holds whole rows, to normalise them."""

HOPPER = 9
"""Lowest compute capability (major): earlier GPUs have no tensor descriptors, and Triton's
emulation of them takes thousands of registers.
"""

_SMALLEST = 16
"""Smallest side of a product on a GPU's matrix units."""


@dataclass(frozen=True)
class Tile:
    """The part of a result that one program of a kernel computes at a time, and its resources."""

    rows: int
    columns: int = 0
    """Columns of the result; 0 in kernels that compute whole rows. Of an MLP's kernel, those of its
    inner layer that are computed at a time."""
    depth: int = 64
    """Addends of each sum that are read at once."""
    warps: int = 4
    stages: int = 3
    """Pipeline stages: reads that are in flight or in use at the same time."""


@dataclass(frozen=True)
class Tiles:
    """The tile of each kernel. `mlp` is the tile of the kernel for the whole MLP; if it is None,
    two kernels (`gate_up` and `down`) compute the MLP.
    """

    attention: Tile = Tile(64)
    o_proj: Tile = Tile(64, stages=2)
    gate_up: Tile = Tile(128, 64)
    down: Tile = Tile(64, stages=2)
    mlp: Tile | None = None


Options = dict[str, tuple[Tile | None, ...]]
"""Tiles that are tried for each field of a `Tiles`, one field after another."""

OPTIONS: Options = {
    "attention": (Tile(64), Tile(128), Tile(128, warps=8)),
    "o_proj": (Tile(64, stages=2), Tile(64, depth=32), Tile(128, warps=8)),
    "gate_up": (
        Tile(128, 64),
        Tile(128, 64, stages=2),
        Tile(128, 64, warps=8),
        Tile(128, 128, warps=8),
    ),
    "down": (Tile(64, stages=2), Tile(64, depth=32), Tile(128, warps=8)),
    "mlp": (None, Tile(128, 32, warps=8), Tile(128, 32, warps=8, stages=2)),
}
"""Tiles that are tried on a device: few large programs, or several small ones whose waits overlap.
On an H100, at the sizes of the v9 checkpoints, all fit: none spills a register.
"""


def unsupported_reason(network: HRM, dtype: torch.dtype) -> str | None:
    """Reason why there are no blocks in Triton with a state of `dtype` for `network`, or None.

    Its device is the network's.
    """
    config = network.config
    length = config.puzzle_emb_len + config.seq_len
    major, minor = torch.cuda.get_device_capability(network.H_init.device)
    obstacles = (
        (network.forward_dtype != dtype, network.forward_dtype),
        (config.pos_encodings != "rope", f"{config.pos_encodings} positions"),
        (config.head_dim not in HEAD_DIMS, f"heads of {config.head_dim}"),
        (config.hidden_size > WIDEST, f"a hidden size of {config.hidden_size}"),
        (length > LONGEST, f"{length} positions"),
        (major < HOPPER, f"compute capability {major}.{minor}"),
    )
    return next((f"there is no Triton for {what}" for unfit, what in obstacles if unfit), None)


def tuned(tiles: AnyTiles, options: Options, seconds: Callable[[AnyTiles], float]) -> AnyTiles:
    """The fastest of `tiles` and their `options`, by `seconds`, one kernel after another."""
    for name, each in options.items():
        best, least = tiles, math.inf
        for option in each:
            change: dict[str, Any] = {name: option}
            tried = replace(tiles, **change)
            try:
                taken = seconds(tried)
            except Exception:  # noqa: BLE001, S112 - perhaps too large for this GPU: try others
                continue
            if taken < least:
                best, least = tried, taken
        tiles = best
    return tiles


class FusedBlock(nn.Module):
    """A `Block` for inference in bfloat16; needs a network for which `unsupported_reason` returns
    None.
    """

    def __init__(self, block: Block, tiles: Tiles) -> None:
        super().__init__()
        attention, mlp = block.self_attn, block.mlp
        self.eps, self.tiles = block.eps, tiles
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.qkv_proj, self.o_proj = attention.qkv_proj, attention.o_proj
        self.gate_up_proj, self.down_proj = mlp.gate_up_proj, mlp.down_proj

    def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        """Compute the block.

        x: (B, T, D) bfloat16; rotary: float32 (2, T, head_dim), with equal halves. Raises
        `ValueError` for another table: a kernel would read beyond its memory.
        """
        table = check_rotary(rotary, x.shape[1], self.head_dim)
        rows = x.flatten(0, 1).contiguous()
        mixed = attend(self.qkv_proj(rows), table, self.num_heads, self.tiles.attention)
        rows = self._project(mixed, self.o_proj.weight, rows, self.tiles.o_proj)
        if self.tiles.mlp is not None:
            return self._mlp(rows, self.tiles.mlp).view(x.shape)
        gated = self._gate(rows, self.tiles.gate_up)
        return self._project(gated, self.down_proj.weight, rows, self.tiles.down).view(x.shape)

    def _project(self, x: Tensor, weight: Tensor, residual: Tensor, tile: Tile) -> Tensor:
        """Compute `rms_norm(residual + x @ weight.T)`."""
        size, inputs = weight.shape
        width = triton.next_power_of_2(size)
        depth = min(tile.depth, triton.next_power_of_2(inputs))
        output = torch.empty_like(residual)
        product_norm_kernel[triton.cdiv(len(x), tile.rows),](
            described(x, tile.rows, depth),
            described(weight, width, depth),
            described(residual, tile.rows, width),
            described(output, tile.rows, width),
            self.eps,
            size=size,
            inputs=inputs,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return output

    def _gate(self, x: Tensor, tile: Tile) -> Tensor:
        """Compute `silu(gate) * up` from the products of `x` with the weights of both."""
        size, inner = x.shape[1], self.gate_up_proj.weight.shape[0] // 2
        depth = min(tile.depth, triton.next_power_of_2(size))
        gated = x.new_empty(len(x), inner)
        gate_kernel[triton.cdiv(len(x), tile.rows) * triton.cdiv(inner, tile.columns),](
            described(x, tile.rows, depth),
            described(self.gate_up_proj.weight.view(2, inner, size), 2, tile.columns, depth),
            described(gated, tile.rows, tile.columns),
            size=size,
            inner=inner,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return gated

    def _mlp(self, x: Tensor, tile: Tile) -> Tensor:
        """Compute `rms_norm(x + mlp(x))`."""
        size, inner = self.down_proj.weight.shape
        width = triton.next_power_of_2(size)
        output = torch.empty_like(x)
        mlp_kernel[triton.cdiv(len(x), tile.rows),](
            described(x, tile.rows, width),
            described(self.gate_up_proj.weight.view(2, inner, size), 2, tile.columns, width),
            described(self.down_proj.weight, width, tile.columns),
            described(output, tile.rows, width),
            self.eps,
            size=size,
            inner=inner,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return output


def check_rotary(rotary: Tensor | None, length: int, head_dim: int) -> Tensor:
    """Return `rotary`, contiguous. Raises `ValueError` unless it is float32 (2, T, head_dim)."""
    if rotary is None or rotary.dtype != torch.float32:
        raise ValueError("no float32 rotary table")
    if rotary.shape != (2, length, head_dim) or length > LONGEST:
        shape = (2, min(length, LONGEST), head_dim)
        raise ValueError(f"no rotary table of {shape}: {tuple(rotary.shape)}")
    return rotary.contiguous()


def attend(qkv: Tensor, rotary: Tensor, heads: int, tile: Tile) -> Tensor:
    """Attention's results (rows, D) for queries, keys and values (rows, 3 * D) of all examples.

    rotary: as `check_rotary` returns it.
    """
    _, length, head_dim = rotary.shape
    padded = max(_SMALLEST, triton.next_power_of_2(length))
    mixed = qkv.new_empty(len(qkv), heads * head_dim)
    attention_kernel[len(qkv) // length * heads,](
        qkv,
        rotary,
        mixed,
        length=length,
        heads=heads,
        head_dim=head_dim,
        KEYS=padded,
        QUERIES=min(tile.rows, padded),
        num_warps=tile.warps,
    )
    return mixed


def described(tensor: Tensor, *block: int) -> TensorDescriptor:
    """Descriptor of `tensor` for a kernel that reads or writes blocks of shape `block`."""
    return TensorDescriptor.from_tensor(tensor, list(block))


# Sizes are compiled in (lower case: the network's; upper case: the tile's). Each descriptor,
# `tl.tensor_descriptor` in full, describes a row-major bfloat16 tensor.


@triton.jit
def attention_kernel(
    qkv: tl.tensor,
    rotary: tl.tensor,
    mixed: tl.tensor,
    length: tl.constexpr,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    KEYS: tl.constexpr,
    QUERIES: tl.constexpr,
) -> None:
    """Compute softmax(rotated q @ rotated k.T) @ v for one head of one example.

    qkv: bfloat16 (B, T, 3, heads, head_dim); rotary: float32 (2, T, head_dim); mixed: bfloat16
    (B, T, heads, head_dim). A score is the sum of two products, one of the first halves and one of
    the second halves, so that rotated halves need not be joined.
    """
    size: tl.constexpr = heads * head_dim
    # Divided by ln 2, for exp2, which is an instruction of the GPU.
    scale: tl.constexpr = head_dim**-0.5 * 1.4426950408889634
    example = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    qkv += example * length * 3 * size + head * head_dim
    mixed += example * length * size + head * head_dim
    key = tl.arange(0, KEYS)
    feature = tl.arange(0, head_dim)[None, :]
    # Positions past the last read as zeros: a NaN of the next example, times 0, would be NaN.
    v = tl.load(qkv + key[:, None] * 3 * size + 2 * size + feature, key[:, None] < length, 0)
    k_first, k_second = rotated(qkv + size, rotary, key, length, size, head_dim)
    for start in tl.static_range(0, KEYS, QUERIES):
        query = start + tl.arange(0, QUERIES)
        q_first, q_second = rotated(qkv, rotary, query, length, size, head_dim)
        scores = tl.dot(q_second, k_second.T, tl.dot(q_first, k_first.T))
        scores = tl.where(key[None, :] < length, scores * scale, float("-inf"))
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        values = tl.dot(weights.to(v.dtype), v) / tl.sum(weights, 1)[:, None]
        place = mixed + query[:, None] * size + feature
        tl.store(place, values.to(v.dtype), query[:, None] < length)


@triton.jit
def rotated(
    x: tl.tensor,
    rotary: tl.tensor,
    position: tl.tensor,
    length: tl.constexpr,
    size: tl.constexpr,
    head_dim: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Both halves of one head's queries or keys, (positions, head_dim / 2), rotated in float32."""
    half: tl.constexpr = head_dim // 2
    position = position[:, None]
    # Zeros fill halves up to the smallest size of a product.
    feature = tl.arange(0, max(half, 16))[None, :]
    real = (position < length) & (feature < half)
    cosines = tl.load(rotary + position * head_dim + feature, real, 0)
    sines = tl.load(rotary + (length + position) * head_dim + feature, real, 0)
    dtype: tl.constexpr = x.dtype.element_ty
    x += position * 3 * size + feature
    first, second = tl.load(x, real, 0).to(tl.float32), tl.load(x + half, real, 0).to(tl.float32)
    return (
        (first * cosines - second * sines).to(dtype),
        (second * cosines + first * sines).to(dtype),
    )


@triton.jit
def product_norm_kernel(
    x: tl.tensor_descriptor,
    weight: tl.tensor_descriptor,
    residual: tl.tensor_descriptor,
    output: tl.tensor_descriptor,
    eps: tl.tensor,
    size: tl.constexpr,
    inputs: tl.constexpr,
) -> None:
    """Compute rms_norm(residual + x @ weight.T) for some rows.

    x: (rows, inputs); weight: (size, inputs); residual, output: (rows, size).
    """
    row = tl.program_id(0) * residual.block_shape[0]
    total = residual.load([row, 0]).to(tl.float32)
    for first in range(0, inputs, x.block_shape[1]):
        total = tl.dot(x.load([row, first]), weight.load([0, first]).T, total)
    output.store([row, 0], normalised(total, eps, size).to(output.dtype))


@triton.jit
def gate_kernel(
    x: tl.tensor_descriptor,
    gate_up: tl.tensor_descriptor,
    gated: tl.tensor_descriptor,
    size: tl.constexpr,
    inner: tl.constexpr,
) -> None:
    """Compute silu(x @ gate.T) * (x @ up.T) for some rows and columns.

    x: (rows, size); gate_up: (2, inner, size); gated: (rows, inner).
    """
    rows: tl.constexpr = gated.block_shape[0]
    columns: tl.constexpr = gated.block_shape[1]
    depth: tl.constexpr = x.block_shape[1]
    across: tl.constexpr = (inner + columns - 1) // columns
    row = tl.program_id(0) // across * rows
    column = tl.program_id(0) % across * columns
    both = tl.zeros((rows, 2 * columns), tl.float32)
    for first in range(0, size, depth):
        weight = gate_up.load([0, column, first]).reshape(2 * columns, depth)
        both = tl.dot(x.load([row, first]), weight.T, both)
    gated.store([row, column], swiglu(both).to(gated.dtype))


@triton.jit
def mlp_kernel(
    x: tl.tensor_descriptor,
    gate_up: tl.tensor_descriptor,
    down: tl.tensor_descriptor,
    output: tl.tensor_descriptor,
    eps: tl.tensor,
    size: tl.constexpr,
    inner: tl.constexpr,
) -> None:
    """Compute rms_norm(x + (silu(x @ gate.T) * (x @ up.T)) @ down.T) for some rows.

    x, output: (rows, size); gate_up: (2, inner, size); down: (size, inner).
    """
    columns: tl.constexpr = down.block_shape[1]
    width: tl.constexpr = down.block_shape[0]
    row = tl.program_id(0) * x.block_shape[0]
    part = x.load([row, 0])
    total = part.to(tl.float32)
    for column in range(0, inner, columns):
        weight = gate_up.load([0, column, 0]).reshape(2 * columns, width)
        gated = swiglu(tl.dot(part, weight.T)).to(x.dtype)
        total = tl.dot(gated, down.load([0, column]).T, total)
    output.store([row, 0], normalised(total, eps, size).to(output.dtype))


@triton.jit
def swiglu(both: tl.tensor) -> tl.tensor:
    """Compute silu(gate) * up; both lie side by side in the last dimension."""
    halves = both.reshape(both.shape[0], 2, both.shape[1] // 2)
    gate, up = tl.split(halves.permute(0, 2, 1))
    return gate / (1 + tl.exp(-gate)) * up


@triton.jit
def normalised(x: tl.tensor, eps: tl.tensor, size: tl.constexpr) -> tl.tensor:
    """Divide rows by the roots of their mean squares; values past column `size` must be 0."""
    return x * tl.rsqrt(tl.sum(x * x, 1) / size + eps)[:, None]
