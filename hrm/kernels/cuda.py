"""The network's blocks for NVIDIA GPUs: what lies between the matrix products, compiled by torch.

Nothing here reads from the GPU or depends on what tensors hold: once a block has been called with
a shape, further calls with that shape can be captured in a CUDA graph.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm.network import HRM, Block, rotate


def rotated(qkv: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, heads, T, head_dim) of (B, T, 3, heads, head_dim), rotated."""
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)
    return rotate(q, rotary), rotate(k, rotary)


def add_norm(x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
    """`rms_norm(x + y, eps)`. eps: float32 (), since compiled code reads numbers from the CPU."""
    wide = (x + y).float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of both, which lie side by side in the last dimension."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


@dataclass(frozen=True)
class Functions:
    """What is done between the matrix products."""

    rotated: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = rotated
    add_norm: Callable[[Tensor, Tensor, Tensor], Tensor] = add_norm
    swiglu: Callable[[Tensor], Tensor] = swiglu

    @classmethod
    def compiled(cls, backend: str = "inductor") -> "Functions":
        """Each as one kernel for all shapes; it is compiled when it is first called."""
        return cls(
            torch.compile(rotated, dynamic=True, backend=backend),
            torch.compile(add_norm, dynamic=True, backend=backend),
            torch.compile(swiglu, dynamic=True, backend=backend),
        )


class FusedBlock(nn.Module):
    """A `Block` for inference whose matrix products are `block`'s and whose rest is `functions`."""

    eps: Tensor

    def __init__(self, block: Block, functions: Functions) -> None:
        super().__init__()
        attention, mlp = block.self_attn, block.mlp
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.qkv_proj, self.o_proj = attention.qkv_proj, attention.o_proj
        self.gate_up_proj, self.down_proj = mlp.gate_up_proj, mlp.down_proj
        eps = torch.tensor(block.eps, device=attention.qkv_proj.weight.device)
        self.register_buffer("eps", eps, persistent=False)
        self._functions = functions

    def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        """x: (B, T, D), of the weights' dtype; rotary: float32 (2, T, head_dim), or None."""
        functions = self._functions
        batch, length, size = x.shape
        qkv = self.qkv_proj(x).view(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if rotary is not None:
            q, k = functions.rotated(qkv, rotary)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        # As rows: a batch of 1 would be compiled by itself.
        rows = functions.add_norm(x.flatten(0, 1), self.o_proj(mixed.reshape(-1, size)), self.eps)
        rows = functions.add_norm(
            rows, self.down_proj(functions.swiglu(self.gate_up_proj(rows))), self.eps
        )
        return rows.view(batch, length, size)


def accelerate(network: HRM) -> str:
    """Replace the blocks of `network`, whose weights have its forward dtype; returns by what."""
    if find_spec("triton") is None:
        return "plain torch, because there is no triton"
    try:
        functions = Functions.compiled()
        _try(network, functions)
    except Exception as error:  # noqa: BLE001 - whatever it is, plain torch works
        said = " ".join(str(error).split())[:200]
        return f"plain torch, because torch.compile failed: {said}"
    fuse(network, functions)
    return "fused by torch.compile"


def fuse(network: HRM, functions: Functions) -> None:
    """Make every block of `network` a `FusedBlock`."""
    for level in (network.H_level, network.L_level):
        for name, module in list(level.named_modules()):
            if isinstance(module, Block):
                level.set_submodule(name, FusedBlock(module, functions))


@torch.inference_mode()
def _try(network: HRM, functions: Functions) -> None:
    """Compile for a batch of one, which has code of its own, and for larger ones."""
    block = next(module for module in network.L_level.modules() if isinstance(module, Block))
    fused = FusedBlock(block, functions)
    for batch in (1, 2):
        fused(network.initial_state(batch).z_L.contiguous(), network.rotary)
    torch.cuda.synchronize()
