"""The network's blocks in Triton compute the same as the plain blocks.

No GPU is needed: the kernels are interpreted, and compiled without being run.
"""

import copy
import importlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import count
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor

from hrm.kernels import cuda
from hrm.model.network import Block, rotary_table
from tests.support.networks import config, network, step_from
from tests.support.triton import Compiler

# Interpreted


class Errors(NamedTuple):
    """Errors of a block's output, compared with float32."""

    mean: float
    most: float


def fused_blocks(
    dtype: torch.dtype, heads: int, head_dim: int, tiles: dict[str, Any]
) -> tuple[Block, torch.nn.Module]:
    from hrm.kernels import cuda_triton  # noqa: PLC0415 - see `interpreter`

    torch.manual_seed(heads + head_dim)
    plain = Block(config(heads, head_dim)).to(dtype).requires_grad_(requires_grad=False)
    chosen = {name: cuda_triton.Tile(**tile) for name, tile in tiles.items()}
    return plain, cuda_triton.FusedBlock(plain, cuda_triton.Tiles(**chosen))


def errors(
    dtype: torch.dtype, batch: int, length: int, heads: int, head_dim: int, **tiles: dict[str, int]
) -> tuple[Errors, Errors]:
    """Errors of the fused block and of the plain block."""
    plain, fused = fused_blocks(dtype, heads, head_dim, tiles)
    exact = copy.deepcopy(plain).float()
    rotary = rotary_table(length, head_dim, 1e4)
    x = torch.randn(batch, length, heads * head_dim).to(dtype)
    truth = exact(x.float(), rotary)
    found = [(block(x, rotary) - truth).abs() for block in (fused, plain)]
    first, second = (Errors(error.mean().item(), error.max().item()) for error in found)
    return first, second


@pytest.mark.parametrize(
    ("batch", "length", "heads", "head_dim"),
    [
        (1, 1, 2, 32),
        (3, 2, 2, 32),
        (5, 17, 2, 32),
        (2, 101, 8, 32),
        (1, 128, 2, 32),
        (2, 17, 1, 16),
        (2, 33, 3, 16),
        (2, 17, 3, 64),
        (2, 9, 2, 128),
    ],
)
def test_a_block_in_triton_computes_the_same(
    interpreter: ProcessPoolExecutor, batch: int, length: int, heads: int, head_dim: int
) -> None:
    shape = (batch, length, heads, head_dim)
    fused, _ = interpreter.submit(errors, torch.float32, *shape).result()
    assert fused.most < 1e-5
    # The interpreter has no bfloat16 products; float16 rounds in the same places.
    fused, plain = interpreter.submit(errors, torch.float16, *shape).result()
    assert fused.mean < 1.1 * plain.mean
    assert fused.most < 2 * plain.most


@pytest.mark.parametrize(
    "tiles",
    [
        {"mlp": {"rows": 64, "columns": 32}},
        {"attention": {"rows": 128}, "gate_up": {"rows": 64, "columns": 128, "depth": 16}},
        {"attention": {"rows": 16}, "o_proj": {"rows": 16}, "down": {"rows": 128, "depth": 32}},
    ],
)
def test_tiles_make_no_difference(
    interpreter: ProcessPoolExecutor, tiles: dict[str, dict[str, int]]
) -> None:
    fused, _ = interpreter.submit(errors, torch.float32, 2, 37, 3, 32, **tiles).result()
    assert fused.most < 1e-5


def outputs_with_a_nan(tiles: dict[str, Any]) -> list[tuple[bool, bool]]:
    """For a NaN at several places in the third example: is all of it NaN, the rest unchanged?"""
    _, fused = fused_blocks(torch.float32, 2, 32, tiles)
    rotary, clean = rotary_table(17, 32, 1e4), torch.randn(5, 17, 64)
    expected, found = fused(clean, rotary), []
    for position in (0, 8, 16):
        x = clean.clone()
        x[2, position, 3] = torch.nan
        output, others = fused(x, rotary), [0, 1, 3, 4]
        found.append((bool(output[2].isnan().all()), torch.equal(output[others], expected[others])))
    return found


@pytest.mark.parametrize("tiles", [{}, {"mlp": {"rows": 64, "columns": 32}}])
def test_a_nan_stays_in_its_example(
    interpreter: ProcessPoolExecutor, tiles: dict[str, Any]
) -> None:
    assert interpreter.submit(outputs_with_a_nan, tiles).result() == [(True, True)] * 3


def accelerated() -> tuple[str, set[str], list[float], int]:
    """Accelerate a network: description, modules of its blocks, errors of a step, measurements.

    float32 on a CPU stands in for bfloat16 on a GPU.
    """
    from hrm.kernels import cuda_triton  # noqa: PLC0415 - see `interpreter`

    calls = count(1)

    def seconds(given: list[Callable[[], Tensor]]) -> list[float]:
        return [1 / next(calls) for call in given if call() is not None]

    plain = network()
    fast = copy.deepcopy(plain)
    with (
        mock.patch.object(cuda_triton, "unsupported_reason", return_value=None),
        mock.patch.object(cuda.Functions, "compiled", cuda.Functions),
        mock.patch.multiple(cuda, seconds=seconds, TIMED_BATCH=1, CHECKED_BATCHES=(1, 3)),
    ):
        said = cuda.accelerate(fast)
    steps = zip(step_from(fast), step_from(plain), strict=True)
    off = [(ours - theirs).abs().max().item() for ours, theirs in steps]
    modules = {type(block).__module__ for block in (*fast.H_level.layers, *fast.L_level.layers)}
    return said, modules, off, next(calls)


def test_a_gpu_uses_triton(interpreter: ProcessPoolExecutor) -> None:
    said, modules, off, measured = interpreter.submit(accelerated).result()
    # Each measurement is faster than the one before, so the last tiles win.
    assert said.startswith("fused by Triton (1.1 times as fast")
    assert modules == {"hrm.kernels.cuda_triton"}
    assert max(off) < 1e-4
    assert measured == 19


def refused() -> list[str]:
    plain, fused = fused_blocks(torch.float32, 2, 32, {})
    rotary, x, found = rotary_table(9, 32, 1e4), torch.randn(2, 9, 64), []
    for table in (None, rotary[:, :8], rotary.double(), rotary[..., :16]):
        try:
            fused(x, table)
        except ValueError as error:
            found.append(str(error))
    spread = torch.stack((rotary, rotary), dim=-1)[..., 0]
    torch.testing.assert_close(
        fused(x.transpose(0, 1).contiguous().transpose(0, 1), spread),
        plain(x, rotary),
        rtol=0,
        atol=1e-5,
    )
    return found


def test_other_rotary_tables_are_refused(interpreter: ProcessPoolExecutor) -> None:
    found = interpreter.submit(refused).result()
    assert len(found) == 4
    assert all("rotary table" in text for text in found)


# Compiled


@pytest.fixture(scope="module")
def cuda_triton() -> ModuleType:
    pytest.importorskip("triton")
    return importlib.import_module("hrm.kernels.cuda_triton")


@pytest.mark.parametrize(
    ("dtype", "fields", "capability", "what"),
    [
        (torch.float32, {}, (9, 0), "torch.float32"),
        (torch.bfloat16, {"pos_encodings": "learned"}, (9, 0), "learned positions"),
        (torch.bfloat16, {"head_dim": 24}, (9, 0), "heads of 24"),
        (torch.bfloat16, {"heads": 9}, (9, 0), "a hidden size of 288"),
        (torch.bfloat16, {"seq_len": 128}, (9, 0), "129 positions"),
        (torch.bfloat16, {}, (8, 9), "compute capability 8.9"),
        (torch.bfloat16, {"seq_len": 127, "heads": 8}, (9, 0), None),
        (torch.bfloat16, {}, (10, 0), None),
    ],
)
def test_a_network_that_is_not_supported_gets_the_reason(
    cuda_triton: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    fields: dict[str, Any],
    capability: tuple[int, int],
    what: str | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    said = cuda_triton.unsupported_reason(network(dtype, **fields), torch.bfloat16)
    assert said == (what and f"there is no Triton for {what}")


def test_the_fastest_tiles_that_fit_are_found(cuda_triton: ModuleType) -> None:
    options = cuda_triton.OPTIONS
    best = {name: options[name][-1] for name in options}

    def seconds(tiles: Any) -> float:  # noqa: ANN401
        if options["o_proj"][1] in {tiles.o_proj, tiles.down}:
            raise RuntimeError("out of resources: shared memory")
        return float(sum(getattr(tiles, name) != tile for name, tile in best.items()))

    assert cuda_triton.tuned(cuda_triton.Tiles(), options, seconds) == cuda_triton.Tiles(**best)


def test_all_kernels_fit_an_h100(cuda_triton: ModuleType, compiler: Compiler) -> None:
    block = Block(config(8, 32, expansion=4.0)).bfloat16().requires_grad_(requires_grad=False)
    x, rotary = torch.zeros(2, 101, 256).bfloat16(), rotary_table(101, 32, 1e4)
    compiler.replace(
        cuda_triton, "attention_kernel", "product_norm_kernel", "gate_kernel", "mlp_kernel"
    )
    for name, options in cuda_triton.OPTIONS.items():
        for option in options:
            tiles = replace(cuda_triton.Tiles(), **{name: option})
            cuda_triton.FusedBlock(block, tiles)(x, rotary)
    assert len(compiler.compiled) == 15
    compiler.assert_all_fit("wgmma")
