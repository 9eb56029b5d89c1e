"""The levels' linear maps in int8, in plain torch: the yardstick for faster forms.

Weights are rounded once, with a scale for each output, and activations where they enter a map, with
a scale for each row. Products of integers are exact; scales are float32. Everything else computes
as before.
"""

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
    """

    def __init__(
        self,
        linear: Linear,
        *,
        inputs: torch.dtype = torch.float32,
        outputs: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        values, scales = quantised(linear.weight.detach())
        exact = torch.float32 if values.shape[1] <= EXACT_INPUTS else torch.float64
        self._weight, self._scales = values.to(exact), scales[:, 0]
        self._inputs, self._outputs = inputs, outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        values, scales = quantised(x.to(self._inputs))
        sums = F.linear(values.to(self._weight.dtype), self._weight).float()
        return (sums * self._scales * scales).to(self._outputs)


def emulate(level: Level, inner: torch.dtype = torch.float32) -> None:
    """Let the linear maps of `level` compute in int8.

    Args:
        level: Its state stays float32.
        inner: Dtype of queries, keys and values, of attention's results and of SwiGLU's gated
            values: what a kernel keeps between a block's products.
    """
    for block in level.layers:
        if not isinstance(block, Block):
            continue
        attention, mlp = block.self_attn, block.mlp
        maps = {
            "self_attn.qkv_proj": Int8Linear(attention.qkv_proj, outputs=inner),
            "self_attn.o_proj": Int8Linear(attention.o_proj, inputs=inner),
            "mlp.gate_up_proj": Int8Linear(mlp.gate_up_proj),
            "mlp.down_proj": Int8Linear(mlp.down_proj, inputs=inner),
        }
        for name, linear in maps.items():
            block.set_submodule(name, linear)
