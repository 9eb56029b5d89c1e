"""The network's blocks in Triton in int8 compute what plain torch emulates.

No GPU is needed: the kernels are interpreted, and compiled without being run.
"""

import copy
import importlib
import logging
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hrm import kernels
from hrm.kernels import Gain, accelerate, cuda, describe, int8_gain, product_dtype
from hrm.kernels.int8 import emulate, quantised
from hrm.model.config import HRMConfig
from hrm.model.network import Block, Level, rms_norm, rotary_table
from tests.support.networks import assert_same_step, config, network, step_from
from tests.support.triton import Compiler

# Interpreted

SIZES = (
    st.tuples(st.integers(1, 4), st.sampled_from([16, 32, 64, 128]))
    .filter(lambda size: size[0] * size[1] <= 256)
    .flatmap(
        lambda size: st.fixed_dictionaries(
            {
                "heads": st.just(size[0]),
                "head_dim": st.just(size[1]),
                "expansion": st.sampled_from([1.0, 2.0, 4.0]),
            }
        )
    )
)
"""Hidden sizes from 16 to 256 and inner sizes from 256 to 768, not all of them powers of two."""

MAGNITUDES = st.sampled_from([0.0, 1e-20, 1e-3, 1.0, 1e9])


class Blocks(NamedTuple):
    """A block, its emulation in int8, and its form in Triton."""

    plain: nn.Module
    emulated: Any
    fused: Any


def blocks(inner: torch.dtype = torch.float32, **sizes: Any) -> Blocks:  # noqa: ANN401
    """The interpreter has no products of bfloat16; other dtypes of `inner` stand in for it."""
    from hrm.kernels import cuda_int8  # noqa: PLC0415 - see `interpreter`

    torch.manual_seed(sizes["heads"] * sizes["head_dim"])
    plain = Level(config(**sizes), 1).requires_grad_(requires_grad=False)
    emulated = copy.deepcopy(plain)
    emulate(emulated, inner, group=cuda_int8.GROUP)
    (block,) = plain.layers
    assert isinstance(block, Block)
    (emulated_block,) = emulated.layers
    return Blocks(block, emulated_block, cuda_int8.FusedBlock(block, cuda_int8.TILES, inner))


class Parts(NamedTuple):
    """Differences between the kernels of a block and their emulation."""

    queries: int
    """Different queries, keys and values."""
    state: float
    """Most by which the state after attention differs, relative to its magnitude."""
    rounded: int
    """Different integers and scales to which that state is rounded."""
    rows: int
    """Rows of the MLP's result that differ by more than float32's rounding."""
    most: float


def parts(rows: int, magnitude: float, sizes: dict[str, Any]) -> Parts:
    _, emulated, fused = blocks(torch.float16, **sizes)
    x, mixed = magnitude * torch.randn(2, rows, sizes["heads"] * sizes["head_dim"])
    mixed = mixed.clamp(-1e4, 1e4).half()
    queries, own_queries = fused._product(x), emulated.self_attn.qkv_proj(x)
    state, values, scales = fused._project(mixed, x)
    own_state = rms_norm(x + emulated.self_attn.o_proj(mixed), fused.eps)
    own_values, own_scales = quantised(state)
    output = fused._mlp(state, values, scales)
    error = (output - rms_norm(state + emulated.mlp(state), fused.eps)).abs()
    return Parts(
        queries=int((queries != own_queries).sum()),
        state=float((state - own_state).abs().max() / own_state.abs().max().clamp(min=1e-30)),
        rounded=int((values != own_values).sum() + (scales != own_scales[:, 0]).sum()),
        rows=int((error > 1e-5).any(-1).sum()),
        most=error.max().item(),
    )


@given(rows=st.integers(1, 70), magnitude=MAGNITUDES, sizes=SIZES)
@settings(max_examples=15, deadline=None)
def test_each_kernel_equals_its_emulation(
    interpreter: ProcessPoolExecutor, rows: int, magnitude: float, sizes: dict[str, Any]
) -> None:
    """To the last integer; float32's exponential may round the other way once in many thousands."""
    found = interpreter.submit(parts, rows, magnitude, sizes).result()
    assert found.queries == 0
    assert found.state < 1e-5
    assert found.rounded == 0
    assert found.rows <= 1
    assert found.most < 0.05


class Outputs(NamedTuple):
    exact: Tensor
    emulated: Tensor
    fused: Tensor


def outputs(
    inner: torch.dtype, batch: int, length: int, magnitude: float, sizes: dict[str, Any]
) -> Outputs:
    made = blocks(inner, **sizes)
    x = magnitude * torch.randn(batch, length, sizes["heads"] * sizes["head_dim"])
    rotary = rotary_table(length, sizes["head_dim"], 1e4)
    return Outputs(*(block(x, rotary) for block in made))


SHAPES = {"batch": st.integers(1, 5), "length": st.integers(1, 40), "sizes": SIZES}


@given(**SHAPES, magnitude=st.sampled_from([0.0, 1e-3, 1.0]))
@settings(max_examples=15, deadline=None)
def test_a_block_equals_its_emulation(
    interpreter: ProcessPoolExecutor,
    **shape: Any,  # noqa: ANN401
) -> None:
    """As the C++ does: up to float32's rounding, by which a number becomes another integer."""
    _, emulated, fused = interpreter.submit(outputs, torch.float32, **shape).result()
    error = (fused - emulated).abs().amax(-1).flatten()
    assert error.max() < 0.2
    assert (error > 1e-5).sum() <= 3 + len(error) / 2


@given(**SHAPES)
@settings(max_examples=10, deadline=None)
def test_a_block_rounds_no_worse_than_its_emulation(
    interpreter: ProcessPoolExecutor,
    **shape: Any,  # noqa: ANN401
) -> None:
    exact, emulated, fused = interpreter.submit(
        outputs, torch.float16, magnitude=1.0, **shape
    ).result()
    error, emulated_error = (fused - exact).abs(), (emulated - exact).abs()
    assert error.max() < 0.5
    assert error.mean() <= 1.3 * emulated_error.mean()


@pytest.mark.parametrize("length", [101, 128])
def test_a_block_of_full_length_equals_its_emulation(
    interpreter: ProcessPoolExecutor, length: int
) -> None:
    sizes = {"heads": 2, "head_dim": 32}
    _, emulated, fused = interpreter.submit(outputs, torch.float32, 2, length, 1.0, sizes).result()
    error = (fused - emulated).abs().amax(-1).flatten()
    assert error.max() < 0.2
    assert (error > 1e-5).sum() <= 3 + len(error) / 2


def differ_by_tiles() -> list[str]:
    """Tiles with which a block's output is another."""
    from hrm.kernels import cuda_int8  # noqa: PLC0415 - see `interpreter`

    fused = blocks(heads=3, head_dim=32, expansion=4.0).fused
    x, rotary = torch.randn(3, 37, 96), rotary_table(37, 32, 1e4)
    expected, found = fused(x, rotary), []
    for name, options in cuda_int8.OPTIONS.items():
        for option in options:
            change: dict[str, Any] = {name: option}
            fused.tiles = replace(cuda_int8.TILES, **change)
            if not torch.equal(fused(x, rotary), expected):
                found.append(f"{name}: {option}")
    return found


def test_tiles_make_no_difference(interpreter: ProcessPoolExecutor) -> None:
    assert interpreter.submit(differ_by_tiles).result() == []


def outputs_with_a_nan() -> list[tuple[bool, bool]]:
    """For a NaN at several places in the third example: is all of it NaN, the rest unchanged?"""
    fused = blocks(heads=2, head_dim=32).fused
    rotary, clean = rotary_table(17, 32, 1e4), torch.randn(5, 17, 64)
    expected, found = fused(clean, rotary), []
    for position in (0, 8, 16):
        for bits in (0x7FC00000, -0x3FFFFF):
            x = clean.clone()
            x[2, position, 3] = torch.tensor([bits], dtype=torch.int32).view(torch.float32)[0]
            output, others = fused(x, rotary), [0, 1, 3, 4]
            unchanged = torch.equal(output[others], expected[others])
            found.append((bool(output[2].isnan().all()), unchanged))
    return found


def test_a_nan_stays_in_its_example(interpreter: ProcessPoolExecutor) -> None:
    assert interpreter.submit(outputs_with_a_nan).result() == [(True, True)] * 6


def refused() -> list[str]:
    fused, found = blocks(heads=2, head_dim=32).fused, []
    rotary, x = rotary_table(9, 32, 1e4), torch.randn(2, 9, 64)
    for table in (None, rotary[:, :8], rotary.double(), rotary[..., :16]):
        try:
            fused(x, table)
        except ValueError as error:
            found.append(str(error))
    return found


def test_other_rotary_tables_are_refused(interpreter: ProcessPoolExecutor) -> None:
    found = interpreter.submit(refused).result()
    assert len(found) == 4
    assert all("rotary table" in text for text in found)


class Tried(NamedTuple):
    """An attempt to compute a network in int8."""

    said: str
    dtype: torch.dtype
    in_triton: bool
    off: list[float]
    """Differences of a step's results from the emulation's."""
    log: list[str]


class Lines(logging.Handler):
    """Keeps the messages of a log."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def tried(factor: float) -> Tried:
    """Accelerate a network in int8 by kernels whose outputs are `factor` times the right ones.

    A CPU and float16 stand in for a GPU and bfloat16.
    """
    from hrm.kernels import cuda_int8  # noqa: PLC0415 - see `interpreter`

    calls, lines, log = count(1), Lines(), logging.getLogger("hrm.kernels")
    log.addHandler(lines)
    log.setLevel(logging.INFO)

    class Half(cuda_int8.FusedBlock):
        def __init__(self, block: Block, tiles: Any) -> None:  # noqa: ANN401
            super().__init__(block, tiles, torch.float16)

        def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
            return super().forward(x, rotary) * factor

    def seconds(given: list[Callable[[], Tensor]]) -> list[float]:
        return [1 / next(calls) for call in given if call() is not None]

    fast, emulated = network(), network()
    with (
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
        mock.patch.object(cuda_int8, "FusedBlock", Half),
        mock.patch.object(kernels, "_device_type", return_value="cuda"),
        mock.patch.object(cuda.Functions, "compiled", cuda.Functions),
        mock.patch.multiple(cuda, seconds=seconds, TIMED_BATCH=1, CHECKED_BATCHES=(1, 3)),
    ):
        accelerate(fast, int8=True)
    log.removeHandler(lines)
    for level in (emulated.H_level, emulated.L_level):
        emulate(level, torch.float16, group=cuda_int8.GROUP)
    steps = zip(step_from(fast), step_from(emulated), strict=True)
    return Tried(
        describe(fast),
        product_dtype(fast),
        all(isinstance(block, Half) for block in (*fast.H_level.layers, *fast.L_level.layers)),
        [(ours - theirs).abs().max().item() for ours, theirs in steps],
        lines.messages,
    )


def test_a_gpu_computes_in_int8(interpreter: ProcessPoolExecutor) -> None:
    found = interpreter.submit(tried, 1.0).result()
    assert found.said == "fused by Triton; int8"
    assert found.dtype == torch.int8
    assert found.in_triton
    assert max(found.off) < 0.2
    tiles, said = found.log
    assert tiles.startswith("Triton: Tiles(attention=Tile(rows=")
    assert said == "kernels: fused by Triton; int8"


def test_wrong_kernels_are_not_used_and_the_log_says_why(interpreter: ProcessPoolExecutor) -> None:
    found = interpreter.submit(tried, 1.02).result()
    used = "fused by torch.compile, because there is no Triton for torch.float32; float32"
    assert found.said == used
    assert found.dtype == torch.float32
    assert not found.in_triton
    _, reason, said = found.log
    assert reason.startswith("dtype float32, not int8: Triton failed: wrong by 0.")
    assert said == f"kernels: {used}"


# The choice


class Form(cuda.FusedBlock):
    """A stand-in for the fastest form in another dtype."""

    def __init__(self, block: Block) -> None:
        super().__init__(block, cuda.Functions())


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A CPU that passes for a GPU without forms of its own, in float32."""
    monkeypatch.setattr(kernels, "_device_type", lambda _: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(cuda, "accelerate", lambda _: "plain torch")
    monkeypatch.setattr(cuda, "find_spec", lambda _: True)
    return monkeypatch


@pytest.mark.parametrize(
    ("fields", "missing", "reason"),
    [
        ({"pos_encodings": "learned"}, None, "there is no Triton for learned positions"),
        ({"head_dim": 24}, None, "there is no Triton for heads of 24"),
        ({"heads": 9}, None, "there is no Triton for a hidden size of 288"),
        ({"seq_len": 128}, None, "there is no Triton for 129 positions"),
        ({}, "capability", "there is no Triton for compute capability 8.9"),
        ({}, "triton", "there is no triton"),
        ({}, "off", "SQE_GPU_KERNELS is off"),
        ({}, "compiled", "SQE_GPU_KERNELS is compiled"),
    ],
)
def test_what_cannot_be_int8_is_float32_and_the_log_says_why(
    gpu: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fields: dict[str, Any],
    missing: str | None,
    reason: str,
) -> None:
    pytest.importorskip("triton")
    match missing:
        case "capability":
            gpu.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
        case "triton":
            gpu.setattr(cuda, "find_spec", lambda _: None)
        case "off" | "compiled":
            gpu.setenv(cuda.SWITCH, missing)
    plain = network(**fields)
    fast = accelerate(copy.deepcopy(plain), int8=True)
    assert caplog.messages[0] == f"dtype float32, not int8: {reason}"
    assert product_dtype(fast) == torch.float32
    assert describe(fast) == "plain torch; float32"
    assert_same_step(plain, fast)
    assert kernels.without_int8(network(**fields)) == reason
    emulated = accelerate(copy.deepcopy(plain), int8=True, emulated=True)
    assert describe(emulated) == "plain torch that emulates kernels; int8"


@pytest.mark.parametrize(
    ("times", "ratio"),
    [
        ([3.0, 2.0], 1.5),
        ([1.0, 2.0], 0.5),
        (torch.OutOfMemoryError("no\nmemory"), "measuring failed: no memory"),
    ],
)
def test_a_level_in_int8_is_timed_beside_the_other_dtypes_fastest_form(
    gpu: pytest.MonkeyPatch, times: list[float] | Exception, ratio: float | str
) -> None:
    timed: list[tuple[torch.dtype, type]] = []

    def seconds(calls: list[Any]) -> list[float]:
        timed.extend((call().dtype, type(call.func.layers[0])) for call in calls)
        if isinstance(times, Exception):
            raise times
        return times

    class InInt8(Form):
        """A stand-in for the form in int8."""

    gpu.setattr(cuda, "int8_form", lambda _: InInt8)
    gpu.setattr(cuda, "accelerate", partial(cuda.fuse, form=Form))
    gpu.setattr(cuda, "seconds", seconds)
    gpu.setattr(cuda, "TIMED_BATCH", 2)
    kernels._int8_ratio_of_gpu.cache_clear()
    assert kernels._int8_ratio_of_gpu(config(), torch.bfloat16, "cpu") == ratio
    assert timed == [(torch.bfloat16, Form), (torch.float32, InInt8)]


def test_without_a_form_in_int8_nothing_is_timed(gpu: pytest.MonkeyPatch) -> None:
    gpu.setenv(cuda.SWITCH, "off")
    kernels._int8_ratio_of_gpu.cache_clear()
    said = kernels._int8_ratio_of_gpu(config(), torch.bfloat16, "cpu")
    assert said == "SQE_GPU_KERNELS is off"


@pytest.mark.parametrize(
    ("ratio", "gain"),
    [
        (1.4, Gain(True, "levels run 1.4 times as fast in int8 as in bfloat16 here")),
        (1.1, Gain(False, "levels run 1.1 times as fast in int8 as in bfloat16 here")),
        ("there is no triton", Gain(False, "there is no triton")),
    ],
)
def test_a_gpu_gains_if_levels_are_enough_faster(
    monkeypatch: pytest.MonkeyPatch, ratio: float | str, gain: Gain
) -> None:
    asked: list[tuple[HRMConfig, torch.dtype, str]] = []

    def measured(*given: Any) -> float | str:  # noqa: ANN401
        asked.append(given)
        return ratio

    monkeypatch.setattr(kernels, "_int8_ratio_of_gpu", measured)
    assert int8_gain(HRMConfig(), torch.bfloat16, "cuda:0") == gain
    ((sizes, over, device),) = asked
    assert (sizes.L_layers, over, device) == (2, torch.bfloat16, "cuda:0")


# Compiled


def test_all_kernels_fit_an_h100(compiler: Compiler) -> None:
    cuda_int8 = importlib.import_module("hrm.kernels.cuda_int8")
    block = Block(config(8, 32, expansion=4.0)).requires_grad_(requires_grad=False)
    x, rotary = torch.zeros(2, 101, 256), rotary_table(101, 32, 1e4)
    compiler.replace(cuda_int8, "product_kernel", "product_norm_kernel", "mlp_kernel")
    attend = mock.patch.object(cuda_int8, "attend", return_value=x.flatten(0, 1).bfloat16())
    for name, options in cuda_int8.OPTIONS.items():
        for option in options:
            tiles = replace(cuda_int8.TILES, **{name: option})
            with attend:  # its kernel is compiled in test_cuda_triton.py
                cuda_int8.FusedBlock(block, tiles)(x, rotary)
    assert len(compiler.compiled) == 10
    compiler.assert_all_fit("wgmma.mma_async.sync.aligned.m64")
    assert all(".s32.s8.s8" in kernel.asm["ptx"] for kernel in compiler.compiled.values())
