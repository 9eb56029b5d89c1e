"""The levels' linear maps in int8, in plain torch: the yardstick for faster forms.

Weights are rounded once, with a scale for each output, and activations where they enter a map, with
a scale for each row or group of its numbers. Products of integers are exact; scales are float32.
Everything else computes as before.
"""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm.model.network import Block, Level, Linear

LARGEST = 127
"""Magnitude of the largest number of a row after rounding; -128 is left out for symmetry."""

SMALLEST = 1e-30
"""Lower limit of a row's largest magnitude, so that a row of zeros has a scale too."""

EXACT_INPUTS = 2**24 // LARGEST**2
"""Number of inputs up to which float32 adds the products of integers without rounding."""


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round the rows of x (…, n) to int8 (…, n), and return them with float32 scales (…, 1).

    Rounds to the nearest, ties to even. The scale of a row with a NaN is NaN.
    """
    wide = x.float()
    largest = wide.abs().amax(-1, keepdim=True).clamp(min=SMALLEST)
    steps = wide.double() * (LARGEST / largest)  # rounded once, as by fused instructions
    return steps.round().to(torch.int8), largest / LARGEST


class Int8Linear(nn.Module):
    """A `Linear` without bias for inference, whose products are of int8.

    Args:
        linear: Its weights are rounded.
        inputs: Dtype to which inputs are rounded before they become int8.
        outputs: Dtype of the outputs.
        group: Number of neighbouring inputs that share a scale; None: those of a row.
    """

    def __init__(
        self,
        linear: Linear,
        *,
        inputs: torch.dtype = torch.float32,
        outputs: torch.dtype = torch.float32,
        group: int | None = None,
    ) -> None:
        super().__init__()
        values, scales = quantised(linear.weight.detach())
        exact = torch.float32 if values.shape[1] <= EXACT_INPUTS else torch.float64
        self._weight, self._scales = values.to(exact), scales[:, 0]
        self._inputs, self._outputs = inputs, outputs
        self._group = values.shape[1] if group is None else group

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        x = x.to(self._inputs)
        groups = zip(
            torch.split(x, self._group, dim=-1),
            torch.split(self._weight, self._group, dim=1),
            strict=True,
        )
        return reduce(torch.add, (self._product(*each) for each in groups)).to(self._outputs)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        values, scales = quantised(x)
        return F.linear(values.to(weight.dtype), weight).float() * self._scales * scales


def emulate(level: Level, inner: torch.dtype = torch.float32, *, group: int | None = None) -> None:
    """Let the linear maps of `level` compute in int8.

    Args:
        level: Its state stays float32.
        inner: Dtype of queries, keys and values, of attention's results and of SwiGLU's gated
            values: what a kernel keeps between a block's products.
        group: Number of gated values that share a scale. A kernel with such groups keeps no gated
            values, so these stay float32. None: a row shares one.
    """
    gated = inner if group is None else torch.float32
    for block in level.layers:
        if not isinstance(block, Block):
            continue
        attention, mlp = block.self_attn, block.mlp
        maps = {
            "self_attn.qkv_proj": Int8Linear(attention.qkv_proj, outputs=inner),
            "self_attn.o_proj": Int8Linear(attention.o_proj, inputs=inner),
            "mlp.gate_up_proj": Int8Linear(mlp.gate_up_proj),
            "mlp.down_proj": Int8Linear(mlp.down_proj, inputs=gated, group=group),
        }
        for name, linear in maps.items():
            block.set_submodule(name, linear)
