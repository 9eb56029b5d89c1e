"""The network's blocks for NVIDIA GPUs: in Triton, or with what lies between the matrix products
compiled by torch, whichever is right and faster on the device.

`SQE_GPU_KERNELS` in the environment leaves kernels unused: `compiled` those in Triton, `off` all.

Nothing here reads from the GPU or depends on what tensors hold: once a block has been called with
a shape, further calls with that shape can be captured in a CUDA graph.
"""

import copy
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import FunctionType
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm.kernels.graphs import cuda_capture
from hrm.model.network import HRM, Block, rotate

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

Form = Callable[[Block], nn.Module]
"""Makes what replaces a block."""

SWITCH = "SQE_GPU_KERNELS"
"""The environment variable."""

MEASURED = 512
"""Examples that two forms are timed with: a lane under load, where their speed matters."""

CHECKED = (1, 33)
"""Examples that a form is checked with: one, for which torch has code of its own, and as many as
fill no kernel's tiles.
"""

ROUNDS, CALLS = 5, 5
"""Forms are timed in so many turns of so many calls; the best turn counts."""


def rotated(qkv: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, heads, T, head_dim) of (B, T, 3, heads, head_dim), rotated."""
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)
    return rotate(q, rotary), rotate(k, rotary)


def add_norm(x: Tensor, y: Tensor, eps: float) -> Tensor:
    """`rms_norm(x + y, eps)`."""
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
    add_norm: Callable[[Tensor, Tensor, float], Tensor] = add_norm
    swiglu: Callable[[Tensor], Tensor] = swiglu

    @classmethod
    def compiled(cls, backend: str | Callable[..., object] = "inductor") -> "Functions":
        """Each as one kernel for any number of rows; it is compiled when it is first called."""
        return cls(
            compiled(rotated, 1, backend),
            compiled(add_norm, 2, backend),
            compiled(swiglu, 1, backend),
        )


def compiled(
    function: Callable[P, R], varying: int, backend: str | Callable[..., object]
) -> Callable[P, R]:
    """`function`, compiled for any first size of its first `varying` arguments.

    All other sizes are constants: what is known to be a multiple of 16 is read in large pieces.
    """
    from torch._dynamo import maybe_mark_dynamic  # noqa: PLC0415 - a second to import

    # With code of its own: of one code, torch compiles eight variants and then no more, and each
    # network of the process would take some.
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    fast = torch.compile(own, dynamic=False, backend=backend)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for argument in args[:varying]:
            maybe_mark_dynamic(argument, 0)
        result: R = fast(*args, **kwargs)
        return result

    return call


class FusedBlock(nn.Module):
    """A `Block` for inference whose matrix products are `block`'s and whose rest is `functions`."""

    def __init__(self, block: Block, functions: Functions) -> None:
        super().__init__()
        attention, mlp = block.self_attn, block.mlp
        self.eps = block.eps
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.qkv_proj, self.o_proj = attention.qkv_proj, attention.o_proj
        self.gate_up_proj, self.down_proj = mlp.gate_up_proj, mlp.down_proj
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


class Trial:
    """A block of `network`, with which forms are tried."""

    def __init__(self, network: HRM) -> None:
        self.network = network
        self.block = next(m for m in network.L_level.modules() if isinstance(m, Block))

    def input(self, batch: int) -> Tensor:
        """Random numbers (B, T, D), always the same."""
        config, device = self.network.config, self.network.H_init.device
        shape = (batch, config.puzzle_emb_len + config.seq_len, config.hidden_size)
        generator = torch.Generator(device).manual_seed(batch)
        x = torch.randn(shape, generator=generator, device=device)
        return x.to(self.network.forward_dtype)

    def check(self, form: Form) -> None:
        """Raises `ArithmeticError` where it is further than the plain block from what float32
        gives, by more than another order of additions explains.
        """
        rotary = self.network.rotary
        exact, fast = copy.deepcopy(self.block).float(), form(self.block)
        for batch in CHECKED:
            x = self.input(batch)
            truth = exact(x.float(), rotary)
            error, allowed = ((b(x, rotary).float() - truth).abs() for b in (fast, self.block))
            mean, most = error.mean().item(), error.max().item()
            # As `not`: NaN is neither.
            if not (
                mean <= 1.1 * allowed.mean().item() + 1e-5
                and most <= 2 * allowed.max().item() + 1e-4
            ):
                raise ArithmeticError(f"wrong by {mean:.1g}, and by {most:.1g} at worst")


def accelerate(network: HRM) -> str:
    """Replace the blocks of `network`, whose weights have its forward dtype; returns by what."""
    if os.environ.get(SWITCH) == "off":
        return f"plain torch, because {SWITCH} is off"
    if find_spec("triton") is None:
        return "plain torch, because there is no triton"
    # cuDNN plans its attention anew for each batch size and thread, tens of milliseconds each time.
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    # In inference mode, as later: compiled code is for its tensors only.
    on_device = torch.cuda.device_of(network.H_init)  # type: ignore[no-untyped-call]
    with on_device, torch.inference_mode():
        form, used = chosen(Trial(network))
    if form is not None:
        fuse(network, form)
    return used


def chosen(trial: Trial) -> tuple[Form | None, str]:
    """The fastest form that is right, or None, and what to say of it."""
    compiled = attempt("torch.compile", partial(compiled_form, trial))
    by_triton = attempt("Triton", partial(triton_form, trial))
    if isinstance(by_triton, str):
        if isinstance(compiled, str):
            return None, f"plain torch, because {compiled}"
        return compiled, f"fused by torch.compile, because {by_triton}"
    if isinstance(compiled, str):
        return by_triton, f"fused by Triton, because {compiled}"
    x = trial.input(MEASURED)
    blocks = [form(trial.block) for form in (compiled, by_triton)]
    timed = attempt(
        "measuring", lambda: seconds([partial(b, x, trial.network.rotary) for b in blocks])
    )
    if isinstance(timed, str):
        return compiled, f"fused by torch.compile, because {timed}"
    ratio = timed[0] / timed[1]
    if ratio > 1:
        return by_triton, f"fused by Triton ({ratio:.1f} times as fast as the compiled form)"
    return compiled, f"fused by torch.compile ({1 / ratio:.1f} times as fast as Triton)"


def attempt(name: str, make: Callable[[], R | str]) -> R | str:
    """What `make` returns, or why it raised."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - whatever it is, there is another form
        said = " ".join(str(error).split()) or type(error).__name__
        return f"{name} failed: {said[:200]}"


def compiled_form(trial: Trial) -> Form:
    """Blocks whose products are cuBLAS's and whose rest is compiled by torch."""
    form = partial(FusedBlock, functions=Functions.compiled())
    trial.check(form)
    return form


def triton_form(trial: Trial) -> Form | str:
    """Blocks in Triton with the tiles that are the fastest here, or why there are none."""
    if os.environ.get(SWITCH) == "compiled":
        return f"{SWITCH} is compiled"
    from hrm.kernels import cuda_triton  # noqa: PLC0415 - there may be no triton

    unfit = cuda_triton.why_not(trial.network)
    if unfit:
        return unfit
    x, rotary = trial.input(MEASURED), trial.network.rotary
    tiles = cuda_triton.tuned(trial.block, lambda block: seconds([partial(block, x, rotary)])[0])
    logger.info("Triton: %s", tiles)
    form = partial(cuda_triton.FusedBlock, tiles=tiles)
    trial.check(form)
    return form


def seconds(calls: Sequence[Callable[[], object]]) -> list[float]:
    """What each takes the device, captured as later: a host launches slower than this computes.

    In turns, so that all meet the same clock.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    best = [math.inf] * len(calls)
    with torch.cuda.stream(stream):
        replays = [cuda_capture(stream)(partial(_ignore, call)) for call in calls]
        for _ in range(ROUNDS):
            for number, replay in enumerate(replays):
                start, end = _event(), _event()
                start.record()
                for _ in range(CALLS):
                    replay()
                end.record()
                end.synchronize()
                best[number] = min(best[number], start.elapsed_time(end) / 1000 / CALLS)
    return best


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _ignore(call: Callable[[], object]) -> None:
    """What is captured returns nothing."""
    call()


def fuse(network: HRM, form: Form) -> None:
    """Replace every block of `network`."""
    for level in (network.H_level, network.L_level):
        for name, module in list(level.named_modules()):
            if isinstance(module, Block):
                level.set_submodule(name, form(module))
