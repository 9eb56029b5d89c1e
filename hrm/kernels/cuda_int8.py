"""The network's blocks for NVIDIA GPUs in Triton, with linear maps in int8 around a float32 state.

Imported only if Triton is installed. The kernels compute what `hrm.kernels.int8` emulates, with a
scale for every `GROUP` of SwiGLU's gated values, which never leave the registers. They round to
int8 exactly as it does; beyond that they differ from it by float32's rounding alone, but for
attention, which rounds its weights to the dtype of the values.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from hrm.kernels.cuda_triton import (
    Options,
    Tile,
    attend,
    check_rotary,
    described,
    normalised,
    swiglu,
)
from hrm.kernels.int8 import LARGEST, SMALLEST, quantised
from hrm.model.network import Block, Linear

GROUP = 64
"""Number of gated values that share a scale. With one scale for a whole row, no product could begin
before the last gated value of the row is known, and all would have to be kept until then."""

_SMALLEST_DEPTH = 32
"""Addends that one int8 instruction of a GPU's matrix units sums."""

_LARGEST = tl.constexpr(float(LARGEST))
_SMALLEST = tl.constexpr(torch.tensor(SMALLEST).view(torch.int32).item())
"""The bits of `SMALLEST` as a float32."""

_INTEGERS = tl.constexpr(1.5 * 2**23)
"""A float32 with a last bit of 1, as have all within 2**22 of it: added to a number, it rounds it
to an integer, ties to even, which then is in the sum's lowest bits."""


@dataclass(frozen=True)
class Tiles:
    """The tile of each kernel."""

    attention: Tile
    qkv_proj: Tile
    o_proj: Tile
    mlp: Tile


TILES = Tiles(
    attention=Tile(64),
    qkv_proj=Tile(64, 64),
    o_proj=Tile(64),
    mlp=Tile(64, GROUP, stages=1),
)
"""Tiles that fit, from which those of a device are sought."""

OPTIONS: Options = {
    "attention": (Tile(64), Tile(128), Tile(128, warps=8)),
    "qkv_proj": (
        Tile(64, 64),
        Tile(64, 64, warps=8),
        Tile(64, 128, warps=8),
        Tile(128, 64, warps=8),
    ),
    "o_proj": (Tile(64), Tile(64, warps=8), Tile(128, warps=8)),
    "mlp": (
        Tile(64, GROUP, stages=1),
        Tile(128, GROUP, warps=8, stages=1),
        Tile(64, GROUP, warps=8, stages=2),
    ),
}
"""Tiles that are tried on a device. Compiled for compute capability 9.0 at the sizes of the v9
checkpoints, all fit: none spills a register. None has been run on a GPU.
"""


class Rounded:
    """The weight of a linear map, rounded to int8, with a scale for each output."""

    def __init__(self, linear: Linear) -> None:
        self.values, scales = quantised(linear.weight.detach())
        self.scales = scales[:, 0].contiguous()


class FusedBlock(nn.Module):
    """A `Block` for inference in int8; needs a network for which `unsupported_reason` returns None.

    Args:
        block: Its weights are rounded.
        tiles: The tile of each kernel.
        inner: Dtype of queries, keys and values, and of attention's results.
    """

    def __init__(self, block: Block, tiles: Tiles, inner: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        attention, mlp = block.self_attn, block.mlp
        self.eps, self.tiles, self.inner = block.eps, tiles, inner
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self._qkv, self._o = Rounded(attention.qkv_proj), Rounded(attention.o_proj)
        self._gate_up, self._down = Rounded(mlp.gate_up_proj), Rounded(mlp.down_proj)

    def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        """Compute the block.

        x: (B, T, D) float32; rotary: float32 (2, T, head_dim), with equal halves. Raises
        `ValueError` for another table: a kernel would read beyond its memory.
        """
        table = check_rotary(rotary, x.shape[1], self.head_dim)
        rows = x.flatten(0, 1).contiguous()
        mixed = attend(self._product(rows), table, self.num_heads, self.tiles.attention)
        return self._mlp(*self._project(mixed, rows)).view(x.shape)

    def _product(self, x: Tensor) -> Tensor:
        """Queries, keys and values of `x`, in the dtype `inner`."""
        tile, weight = self.tiles.qkv_proj, self._qkv
        outputs, size = weight.values.shape
        width = _width(size)
        output = x.new_empty(len(x), outputs, dtype=self.inner)
        product_kernel[triton.cdiv(len(x), tile.rows),](
            described(x, tile.rows, width),
            described(weight.values, tile.columns, width),
            described(weight.scales, tile.columns),
            described(output, tile.rows, tile.columns),
            outputs=outputs,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return output

    def _project(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute `rms_norm(residual + o_proj(x))`, and round its rows to int8 with scales."""
        tile, weight = self.tiles.o_proj, self._o
        size = len(weight.values)
        width = _width(size)
        output = torch.empty_like(residual)
        values = torch.empty_like(residual, dtype=torch.int8)
        scales = residual.new_empty(len(residual))
        product_norm_kernel[triton.cdiv(len(x), tile.rows),](
            described(x, tile.rows, width),
            described(weight.values, width, width),
            described(weight.scales, width),
            described(residual, tile.rows, width),
            described(output, tile.rows, width),
            described(values, tile.rows, width),
            described(scales, tile.rows),
            self.eps,
            size=size,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return output, values, scales

    def _mlp(self, x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
        """Compute `rms_norm(x + mlp(x))`; `values` and `scales` are the rounded rows of `x`."""
        tile, gate_up, down = self.tiles.mlp, self._gate_up, self._down
        size, inner = down.values.shape
        width = _width(size)
        output = torch.empty_like(x)
        mlp_kernel[triton.cdiv(len(x), tile.rows),](
            described(values, tile.rows, width),
            described(scales, tile.rows),
            described(gate_up.values.view(2, inner, size), 2, tile.columns, width),
            described(gate_up.scales.view(2, inner), 2, tile.columns),
            described(down.values, width // 2, tile.columns),
            described(down.scales, width // 2),
            described(x, tile.rows, width // 2),
            described(output, tile.rows, width),
            self.eps,
            size=size,
            inner=inner,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return output


def _width(size: int) -> int:
    """Columns of a tile that holds whole rows of `size` numbers."""
    width: int = triton.next_power_of_2(size)
    return max(_SMALLEST_DEPTH, width)


# As in `cuda_triton`: sizes are compiled in, and each descriptor describes a row-major tensor.


@triton.jit
def product_kernel(
    x: tl.tensor_descriptor,
    weight: tl.tensor_descriptor,
    weight_scales: tl.tensor_descriptor,
    output: tl.tensor_descriptor,
    outputs: tl.constexpr,
) -> None:
    """Compute x @ weight.T for some rows.

    x: float32 (rows, inputs); weight: int8 (outputs, inputs); weight_scales: float32 (outputs,);
    output: (rows, outputs).
    """
    row = tl.program_id(0) * output.block_shape[0]
    values, scales = rounded(x.load([row, 0]))
    for column in range(0, outputs, output.block_shape[1]):
        sums = product(values, scales, weight.load([column, 0]), weight_scales.load([column]))
        output.store([row, column], sums.to(output.dtype))


@triton.jit
def product_norm_kernel(
    x: tl.tensor_descriptor,
    weight: tl.tensor_descriptor,
    weight_scales: tl.tensor_descriptor,
    residual: tl.tensor_descriptor,
    output: tl.tensor_descriptor,
    output_values: tl.tensor_descriptor,
    output_scales: tl.tensor_descriptor,
    eps: tl.tensor,
    size: tl.constexpr,
) -> None:
    """Compute rms_norm(residual + x @ weight.T) for some rows, and round it to int8.

    x: (rows, size); weight: int8 (size, size); weight_scales: float32 (size,); residual, output:
    float32 (rows, size); output_values: int8 (rows, size); output_scales: float32 (rows,).
    """
    row = tl.program_id(0) * output.block_shape[0]
    values, scales = rounded(x.load([row, 0]).to(tl.float32))
    total = product(values, scales, weight.load([0, 0]), weight_scales.load([0]))
    state = normalised(residual.load([row, 0]) + total, eps, size)
    values, scales = rounded(state)
    output.store([row, 0], state)
    output_values.store([row, 0], values)
    output_scales.store([row], scales)


@triton.jit
def mlp_kernel(
    x: tl.tensor_descriptor,
    scales: tl.tensor_descriptor,
    gate_up: tl.tensor_descriptor,
    gate_up_scales: tl.tensor_descriptor,
    down: tl.tensor_descriptor,
    down_scales: tl.tensor_descriptor,
    residual: tl.tensor_descriptor,
    output: tl.tensor_descriptor,
    eps: tl.tensor,
    size: tl.constexpr,
    inner: tl.constexpr,
) -> None:
    """Compute rms_norm(residual + (silu(x @ gate.T) * (x @ up.T)) @ down.T) for some rows.

    x: int8 (rows, size), with scales (rows,); gate_up: int8 (2, inner, size), with scales
    (2, inner); down: int8 (size, inner), with scales (size,); residual, output: (rows, size). All
    but int8 is float32.
    """
    rows: tl.constexpr = x.block_shape[0]
    width: tl.constexpr = x.block_shape[1]
    half: tl.constexpr = down.block_shape[0]
    columns: tl.constexpr = down.block_shape[1]
    row = tl.program_id(0) * rows
    values, row_scales = x.load([row, 0]), scales.load([row])
    first, second = tl.zeros((rows, half), tl.float32), tl.zeros((rows, half), tl.float32)
    for column in range(0, inner, columns):
        weight = gate_up.load([0, column, 0]).reshape(2 * columns, width)
        weight_scales = gate_up_scales.load([0, column]).reshape(2 * columns)
        gated, group_scales = rounded(swiglu(product(values, row_scales, weight, weight_scales)))
        # Half the columns at a time: all integer sums beside the totals need too many registers.
        sums = tl.dot(gated, down.load([0, column]).T)
        first += sums.to(tl.float32) * group_scales[:, None]
        sums = tl.dot(gated, down.load([half, column]).T)
        second += sums.to(tl.float32) * group_scales[:, None]
    first = residual.load([row, 0]) + first * down_scales.load([0])[None, :]
    second = residual.load([row, half]) + second * down_scales.load([half])[None, :]
    total = tl.join(first, second).permute(0, 2, 1).reshape(rows, width)
    output.store([row, 0], normalised(total, eps, size))


@triton.jit
def product(
    values: tl.tensor, scales: tl.tensor, weight: tl.tensor, weight_scales: tl.tensor
) -> tl.tensor:
    """Compute the float32 product of int8 rows with the rows of an int8 weight, both scaled."""
    sums = tl.dot(values, weight.T).to(tl.float32)
    return sums * weight_scales[None, :] * scales[:, None]


@triton.jit
def rounded(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Round float32 rows to int8, and return them with a scale for each; `quantised` in torch."""
    # Numbers without a sign are in the order of their bits. A NaN's exceed all others.
    bits = tl.max(tl.abs(x).to(tl.int32, bitcast=True), 1)
    largest = tl.maximum(bits, _SMALLEST).to(tl.float32, bitcast=True)
    # As torch divides a number by a tensor: by its reciprocal.
    steps = tl.div_rn(tl.full(largest.shape, 1.0, tl.float32), largest) * _LARGEST
    # A fused instruction, so that a product is not rounded before it becomes an integer.
    sums = tl.fma(x, steps[:, None].broadcast_to(x.shape), tl.full(x.shape, _INTEGERS, tl.float32))
    scales = tl.div_rn(largest, tl.full(largest.shape, _LARGEST, tl.float32))
    return sums.to(tl.int32, bitcast=True).to(tl.int8), scales
