"""The network's levels for training on CPUs, faster than the plain ones.

Most calls of a level in a training step carry no gradient, and inference's C++ computes them. Those
that do carry one multiply by torch, as the plain level does, and leave the rest, forward and
backward, to C++. Knows levels; nothing of losses or optimisers.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hrm.kernels import cpu
from hrm.kernels.compiler import SWITCH, Kernels, is_switched_off, kernels
from hrm.model.network import HRM, Block, Level, Levels


class TrainedLevels:
    """The levels with which `network` is trained: in the fastest form on its device.

    They compute the same as the network's own, up to rounding, and give the same gradients to its
    weights. `form` says how they compute, for example `C++ (g++ 12.2.0)`, or why plainly.

    Args:
        network: The network, already on its device.
    """

    def __init__(self, network: HRM) -> None:
        self._fast: list[TrainedLevel] = []
        self.levels = network.levels
        unfit = self._unsupported_reason(network)
        found = unfit or kernels()
        if isinstance(found, Kernels):
            cpu.keep_freed_memory()
            dtype = network.forward_dtype
            self._fast = [
                TrainedLevel(level, dtype, found) for level in (network.H_level, network.L_level)
            ]
            self.levels = Levels(*self._fast)
            self.form = f"C++ ({found.compiler.label})"
        else:
            self.form = f"plain torch, because {found}"

    def refresh(self) -> None:
        """Take over the network's weights, after they have changed."""
        for level in self._fast:
            level.refresh()

    @staticmethod
    def _unsupported_reason(network: HRM) -> str | None:
        device = network.H_init.device.type
        if device != "cpu":
            return f"there is no faster form of training for {device}"
        if is_switched_off():
            return f"{SWITCH} is off"
        return cpu.unsupported_reason(network)


class TrainedLevel:
    """A `Level` in training, with copies of its weights in the forward dtype.

    Needs a network for which `cpu.unsupported_reason` returns None.
    """

    def __init__(self, level: Level, dtype: torch.dtype, kernels: Kernels) -> None:
        blocks = [block for block in level.layers if isinstance(block, Block)]
        self._blocks = [TrainedBlock(block, dtype, kernels) for block in blocks]
        self._fused = None
        if cpu.has_level(kernels, dtype):
            self._fused = cpu.FusedLevel(level, dtype, kernels)

    def refresh(self) -> None:
        """Take over the level's weights, after they have changed."""
        for block in self._blocks:
            block.refresh()
        if self._fused is not None:
            self._fused.refresh(block.copies for block in self._blocks)

    def __call__(
        self,
        z: Tensor,
        injection: Tensor,
        rotary: Tensor | None,
        positions: int | None = None,
    ) -> Tensor:
        """Compute what `Level.forward` does, with a gradient if torch records one."""
        if self._fused is not None and not torch.is_grad_enabled():
            return self._fused.forward(z, injection, rotary, positions)
        z = z + injection
        for block in self._blocks:
            z = block(z, rotary)
        return z[:, :positions]


class TrainedBlock:
    """A `Block` in training: torch's matrix products, and C++ for the rest."""

    def __init__(self, block: Block, dtype: torch.dtype, kernels: Kernels) -> None:
        self.weights = cpu.weights_of(block)
        self.copies = [weight.detach().to(dtype) for weight in self.weights]
        self.functions = Functions(block, dtype, kernels)

    def refresh(self) -> None:
        """Take over the block's weights, after they have changed."""
        with torch.no_grad():
            torch._foreach_copy_(self.copies, list(self.weights))

    def __call__(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        """Map (B, T, D) to (B, T, D), of the forward dtype; rotary: float32 (2, T, head_dim)."""
        output: Tensor = _Block.apply(x, rotary, self, *self.weights)  # type: ignore[no-untyped-call]
        return output


class Functions:
    """The parts of a block between its matrix products, and their gradients, in C++.

    All tensors are contiguous and of the block's dtype, x (B, T, D).
    """

    def __init__(self, block: Block, dtype: torch.dtype, kernels: Kernels) -> None:
        self.dtype, self._eps = dtype, block.eps
        self._heads, self.head_dim = block.self_attn.num_heads, block.self_attn.head_dim
        self._library, self._suffix = kernels.library, cpu.DTYPES[dtype]

    def attention(self, qkv: Tensor, rotary: Tensor) -> Tensor:
        """Attend: qkv (B, T, 3 D) to (B, T, D)."""
        batch, length, size = qkv.shape
        output = qkv.new_empty(batch, length, size // 3)
        self._call("attention", qkv, rotary, output, batch, length, self._heads, self.head_dim)
        return output

    def attention_gradient(self, qkv: Tensor, rotary: Tensor, gradient: Tensor) -> Tensor:
        """Turn the gradient of `attention`'s output into that of qkv."""
        output = torch.empty_like(qkv)
        shape = (*qkv.shape[:2], self._heads, self.head_dim)
        self._call("attention_gradient", qkv, rotary, gradient, output, *shape)
        return output

    def add_norm(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute `rms_norm(x + y)`."""
        output = torch.empty_like(x)
        self._call("add_norm", x, y, output, *_rows(x), self._eps)
        return output

    def add_norm_gradient(self, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        """Turn the gradient of `add_norm`'s output into that of x, which is also that of y."""
        output = torch.empty_like(x)
        self._call("add_norm_gradient", x, y, gradient, output, *_rows(x), self._eps)
        return output

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """Compute `silu(gate) * up`; gates come first in the last dimension of `gate_up`."""
        output = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
        self._call("swiglu", gate_up, output, *_rows(output))
        return output

    def swiglu_gradient(self, gate_up: Tensor, gradient: Tensor) -> Tensor:
        """Turn the gradient of `swiglu`'s output into that of `gate_up`."""
        output = torch.empty_like(gate_up)
        self._call("swiglu_gradient", gate_up, gradient, output, *_rows(gradient))
        return output

    def _call(self, name: str, *arguments: Tensor | float) -> None:
        function = getattr(self._library, f"{name}_{self._suffix}")
        pointers = (each.data_ptr() if isinstance(each, Tensor) else each for each in arguments)
        function(*pointers, torch.get_num_threads())


def _rows(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[-1], x.shape[-1]


class _Block(torch.autograd.Function):
    """`Block.forward`, and the gradients of its input and weights."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own type has no attributes
        x: Tensor,
        rotary: Tensor | None,
        block: TrainedBlock,
        *_: Tensor,
    ) -> Tensor:
        c, (qkv_proj, o_proj, gate_up_proj, down_proj) = block.functions, block.copies
        batch, length, _size = x.shape
        table = cpu.checked_rotary(rotary, length, c.head_dim)
        x = cpu.checked(x, (batch, length, len(o_proj)), c.dtype)
        qkv = x @ qkv_proj.T
        mixed = c.attention(qkv, table)
        attended = mixed @ o_proj.T
        middle = c.add_norm(x, attended)
        gate_up = middle @ gate_up_proj.T
        gated = c.swiglu(gate_up)
        transformed = gated @ down_proj.T
        ctx.save_for_backward(table, x, qkv, mixed, attended, middle, gate_up, gated, transformed)
        ctx.block = block
        return c.add_norm(middle, transformed)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - as above
        gradient: Tensor,
    ) -> tuple[Tensor | None, ...]:
        c, (qkv_proj, o_proj, gate_up_proj, down_proj) = ctx.block.functions, ctx.block.copies
        table, x, qkv, mixed, attended, middle, gate_up, gated, transformed = ctx.saved_tensors
        outer = c.add_norm_gradient(middle, transformed, gradient.contiguous())
        for_gate_up = c.swiglu_gradient(gate_up, outer @ down_proj)
        inner = c.add_norm_gradient(x, attended, _plus(outer, for_gate_up, gate_up_proj))
        for_qkv = c.attention_gradient(qkv, table, inner @ o_proj)
        return (
            _plus(inner, for_qkv, qkv_proj) if ctx.needs_input_grad[0] else None,
            None,
            None,
            _for_weight(for_qkv, x),
            _for_weight(inner, mixed),
            _for_weight(for_gate_up, middle),
            _for_weight(outer, gated),
        )


def _plus(residual: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """`residual` plus the gradient of a product's input, from `gradient` of its output."""
    total = torch.addmm(residual.flatten(0, 1), gradient.flatten(0, 1), weight)
    return total.view_as(residual)


def _for_weight(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient of a product's weight, float32."""
    return (gradient.flatten(0, 1).T @ x.flatten(0, 1)).float()
