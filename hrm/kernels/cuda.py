"""The network's blocks for NVIDIA GPUs, in the form that is correct and faster on the device:
entirely in Triton, or with torch's matrix products and compiled code between them. In int8 there is
the form in Triton alone.

`SQE_GPU_KERNELS` in the environment turns kernels off: `compiled` those in Triton, `off` all.

Blocks neither read from the GPU nor depend on the contents of tensors: once a block has been called
with a shape, further calls with that shape can be captured in a CUDA graph.
"""

import copy
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import FunctionType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm.kernels.folder import keep_gpu_caches
from hrm.kernels.graphs import cuda_capture
from hrm.kernels.int8 import emulate
from hrm.model.network import HRM, Block, rotate

if TYPE_CHECKING:
    from hrm.kernels.cuda_triton import AnyTiles, Options

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

Form = Callable[[Block], nn.Module]
"""A function that returns the replacement for a block."""

SWITCH = "SQE_GPU_KERNELS"
"""Environment variable that turns kernels off; see above."""

TIMED_BATCH = 512
"""Batch size with which forms are timed: a lane under load, when speed matters."""

CHECKED_BATCHES = (1, 33)
"""Batch sizes with which a form is checked: 1, for which torch has separate code, and one that is
not a multiple of any kernel's tiles.
"""

ROUNDS, CALLS = 5, 5
"""Rounds in which forms are timed in turn, and calls of each form in a round; the best round
counts.
"""


def rotated(qkv: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
    """Rotated queries and keys, (B, heads, T, head_dim), from (B, T, 3, heads, head_dim)."""
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)
    return rotate(q, rotary), rotate(k, rotary)


def add_norm(x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Compute `rms_norm(x + y, eps)`."""
    wide = (x + y).float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """Compute `silu(gate) * up`; both lie side by side in the last dimension of `gate_up`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


@dataclass(frozen=True)
class Functions:
    """The functions applied between the matrix products."""

    rotated: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = rotated
    add_norm: Callable[[Tensor, Tensor, float], Tensor] = add_norm
    swiglu: Callable[[Tensor], Tensor] = swiglu

    @classmethod
    def compiled(cls, backend: str | Callable[..., object] = "inductor") -> "Functions":
        """Each function as one kernel for any number of rows, compiled on its first call."""
        return cls(
            compiled(rotated, 1, backend),
            compiled(add_norm, 2, backend),
            compiled(swiglu, 1, backend),
        )


def compiled(
    function: Callable[P, R], varying: int, backend: str | Callable[..., object]
) -> Callable[P, R]:
    """Compile `function` for any first dimension of its first `varying` arguments.

    All other dimensions are constants: a kernel reads larger pieces if it knows that a dimension is
    a multiple of 16.
    """
    from torch._dynamo import maybe_mark_dynamic  # noqa: PLC0415 - takes a second to import

    # A copy with its own code object: torch compiles at most eight variants of one code object, and
    # each network of the process would use up some.
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    fast = torch.compile(own, dynamic=False, backend=backend)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for argument in args[:varying]:
            maybe_mark_dynamic(argument, 0)
        result: R = fast(*args, **kwargs)
        return result

    return call


class FusedBlock(nn.Module):
    """A `Block` for inference: `block`'s own matrix products, and `functions` for the rest."""

    def __init__(self, block: Block, functions: Functions) -> None:
        super().__init__()
        attention, mlp = block.self_attn, block.mlp
        self.eps = block.eps
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.qkv_proj, self.o_proj = attention.qkv_proj, attention.o_proj
        self.gate_up_proj, self.down_proj = mlp.gate_up_proj, mlp.down_proj
        self._functions = functions

    def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        """Compute the block.

        x: (B, T, D) in the weights' dtype; rotary: float32 (2, T, head_dim), or None.
        """
        functions = self._functions
        batch, length, size = x.shape
        qkv = self.qkv_proj(x).view(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if rotary is not None:
            q, k = functions.rotated(qkv, rotary)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        # Flattened to rows, because a batch of 1 would be compiled separately.
        rows = functions.add_norm(x.flatten(0, 1), self.o_proj(mixed.reshape(-1, size)), self.eps)
        rows = functions.add_norm(
            rows, self.down_proj(functions.swiglu(self.gate_up_proj(rows))), self.eps
        )
        return rows.view(batch, length, size)


def random_state(network: HRM, batch: int) -> Tensor:
    """Random state (B, T, D) of a level of `network`, the same on every call."""
    config, device = network.config, network.H_init.device
    shape = (batch, config.puzzle_emb_len + config.seq_len, config.hidden_size)
    generator = torch.Generator(device).manual_seed(batch)
    return torch.randn(shape, generator=generator, device=device).to(network.forward_dtype)


class BlockBenchmark:
    """A block of `network` with which forms are checked and timed."""

    def __init__(self, network: HRM) -> None:
        self.network = network
        self.block = next(m for m in network.L_level.modules() if isinstance(m, Block))

    def emulated(self, group: int) -> nn.Module:
        """The block with linear maps in int8, as plain torch emulates kernels with this `group`."""
        level = copy.deepcopy(self.network.L_level)
        emulate(level, torch.bfloat16, group=group)
        return next(m for m in level.modules() if isinstance(m, Block))

    def check(self, form: Form, plain: nn.Module | None = None) -> None:
        """Check `form` against `plain`, by default the plain block.

        Both are compared with a float32 computation.

        Raises:
            ArithmeticError: The form's error exceeds that of `plain` by more than a different
                summation order can explain.
        """
        rotary = self.network.rotary
        exact, fast = copy.deepcopy(self.block).float(), form(self.block)
        for batch in CHECKED_BATCHES:
            x = random_state(self.network, batch)
            truth = exact(x.float(), rotary)
            error, allowed = (
                (block(x, rotary).float() - truth).abs() for block in (fast, plain or self.block)
            )
            mean, most = error.mean().item(), error.max().item()
            # Negated, because comparisons with NaN are false.
            if not (
                mean <= 1.1 * allowed.mean().item() + 1e-5
                and most <= 2 * allowed.max().item() + 1e-4
            ):
                raise ArithmeticError(f"wrong by {mean:.1g}, and by {most:.1g} at worst")


def accelerate(network: HRM) -> str:
    """Replace the blocks of `network`, whose weights must have its forward dtype.

    Returns:
        A description of the form that is used now.
    """
    if os.environ.get(SWITCH) == "off":
        return f"plain torch, because {SWITCH} is off"
    if find_spec("triton") is None:
        return "plain torch, because there is no triton"
    with trials(network):
        form, used = chosen(BlockBenchmark(network))
    if form is not None:
        fuse(network, form)
    return used


@contextmanager
def trials(network: HRM) -> Iterator[None]:
    """Let forms of the blocks of `network` be tried on its device, as they will be used."""
    keep_gpu_caches()
    # cuDNN plans its attention again for each batch size and thread, which takes tens of
    # milliseconds each time.
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    # In inference mode, as in later calls: compiled code works only with such tensors.
    on_device = torch.cuda.device_of(network.H_init)  # type: ignore[no-untyped-call]
    with on_device, torch.inference_mode():
        yield


def int8_form(network: HRM) -> Form | str:
    """The form of the blocks of `network` in int8, checked, or the reason why there is none.

    The weights must be float32, as is the form's state.
    """
    if os.environ.get(SWITCH) in {"off", "compiled"}:
        return f"{SWITCH} is {os.environ[SWITCH]}"
    if find_spec("triton") is None:
        return "there is no triton"
    with trials(network):
        return attempt("Triton", partial(triton_int8_form, BlockBenchmark(network)))


def int8_ratio(network: HRM, other: HRM) -> float | str:
    """Speed of a level of `network` in int8, relative to one of `other` in its fastest form.

    Blocks of both are replaced. A whole level is timed, because its state may be wider in int8.

    Returns:
        The ratio, or the reason if there is no int8, or if nothing can be measured.
    """
    form = int8_form(network)
    if isinstance(form, str):
        return form
    fuse(network, form)
    accelerate(other)
    with trials(network):
        timed = attempt("measuring", lambda: seconds([_level(other), _level(network)]))
    return timed if isinstance(timed, str) else timed[0] / timed[1]


def _level(network: HRM) -> Callable[[], Tensor]:
    """A call of a level of `network`, to be timed."""
    state = random_state(network, TIMED_BATCH)
    return partial(network.L_level, state, state, network.rotary)


def chosen(benchmark: BlockBenchmark) -> tuple[Form | None, str]:
    """The fastest correct form, or None for the plain block, with a description."""
    compiled = attempt("torch.compile", partial(compiled_form, benchmark))
    by_triton = attempt("Triton", partial(triton_form, benchmark))
    if isinstance(by_triton, str):
        if isinstance(compiled, str):
            return None, f"plain torch, because {compiled}"
        return compiled, f"fused by torch.compile, because {by_triton}"
    if isinstance(compiled, str):
        return by_triton, f"fused by Triton, because {compiled}"
    x = random_state(benchmark.network, TIMED_BATCH)
    blocks = [form(benchmark.block) for form in (compiled, by_triton)]
    timed = attempt(
        "measuring", lambda: seconds([partial(b, x, benchmark.network.rotary) for b in blocks])
    )
    if isinstance(timed, str):
        return compiled, f"fused by torch.compile, because {timed}"
    ratio = timed[0] / timed[1]
    if ratio > 1:
        return by_triton, f"fused by Triton ({ratio:.1f} times as fast as the compiled form)"
    return compiled, f"fused by torch.compile ({1 / ratio:.1f} times as fast as Triton)"


def attempt(name: str, make: Callable[[], R | str]) -> R | str:
    """Return the result of `make`, or a line that says why it failed."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - on any error, another form is used
        said = " ".join(str(error).split()) or type(error).__name__
        return f"{name} failed: {said[:200]}"


def compiled_form(benchmark: BlockBenchmark) -> Form:
    """The form with matrix products by cuBLAS and the rest compiled by torch, checked."""
    form = partial(FusedBlock, functions=Functions.compiled())
    benchmark.check(form)
    return form


def triton_form(benchmark: BlockBenchmark) -> Form | str:
    """The Triton form with the fastest tiles for this device, checked, or why there is none."""
    if os.environ.get(SWITCH) == "compiled":
        return f"{SWITCH} is compiled"
    from hrm.kernels import cuda_triton  # noqa: PLC0415 - triton may be missing

    unfit = cuda_triton.unsupported_reason(benchmark.network, torch.bfloat16)
    if unfit:
        return unfit
    form = tuned(benchmark, cuda_triton.FusedBlock, cuda_triton.Tiles(), cuda_triton.OPTIONS)
    benchmark.check(form)
    return form


def triton_int8_form(benchmark: BlockBenchmark) -> Form | str:
    """The Triton form in int8 with the fastest tiles for this device, checked against its
    emulation, or why there is none.
    """
    from hrm.kernels import cuda_int8, cuda_triton  # noqa: PLC0415 - triton may be missing

    unfit = cuda_triton.unsupported_reason(benchmark.network, torch.float32)
    if unfit:
        return unfit
    form = tuned(benchmark, cuda_int8.FusedBlock, cuda_int8.TILES, cuda_int8.OPTIONS)
    benchmark.check(form, benchmark.emulated(cuda_int8.GROUP))
    return form


def tuned(
    benchmark: BlockBenchmark,
    kind: Callable[[Block, "AnyTiles"], nn.Module],
    tiles: "AnyTiles",
    options: "Options",
) -> Form:
    """The form by blocks of a `kind`, with the fastest of `tiles` and their `options` here."""
    from hrm.kernels import cuda_triton  # noqa: PLC0415 - triton may be missing

    network = benchmark.network
    x, rotary = random_state(network, TIMED_BATCH), network.rotary

    def taken(tried: "AnyTiles") -> float:
        return seconds([partial(kind(benchmark.block, tried), x, rotary)])[0]

    fastest = cuda_triton.tuned(tiles, options, taken)
    logger.info("Triton: %s", fastest)
    return lambda block: kind(block, fastest)


def seconds(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Time that the device takes for each of `calls`, in seconds.

    Calls are captured, as in later use, because a host launches kernels more slowly than the device
    runs them. They are timed in turn, so that all run at the same clock rate.
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
    """Run `call` without its result, as `Capture` requires."""
    call()


def fuse(network: HRM, form: Form) -> None:
    """Replace every block of `network` by its `form`."""
    for level in (network.H_level, network.L_level):
        for name, module in list(level.named_modules()):
            if isinstance(module, Block):
                level.set_submodule(name, form(module))
