"""The fast forms of the network's levels compute the same as the plain levels, where available."""

import copy
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hrm import kernels
from hrm.checkpoint import load_checkpoint
from hrm.data.conversion import AcceptedPair, Converter
from hrm.kernels import accelerate, compiler, cpu, describe, fastest_dtype, product_dtype
from hrm.kernels.compiler import Kernels, KernelsUnavailableError
from hrm.kernels.int8 import emulate, quantised
from hrm.model.batch import Batch, encode
from hrm.model.network import HRM, Block, Level, Linear, State, rotary_table
from hrm.model.reference_loop import LoopOutput, evaluate_rules
from schemas import HaltedBy
from tests.support.networks import assert_same_step, config, network, step_from

DEMO = Path(__file__).parents[4] / "checkpoints" / "sqe-demo"
DEMO_STEPS = 6
"""By then nearly all examples have halted under `q`; 16 steps would take three times as long."""

LENGTHS = (1, 2, 7, 16, 17, 101, 130)


@pytest.fixture(scope="module")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def surroundings(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache for these tests alone, and nothing remembered from another test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    monkeypatch.delenv(compiler.SWITCH, raising=False)
    monkeypatch.delenv("CXX", raising=False)
    compiler.kernels.cache_clear()
    yield
    compiler.kernels.cache_clear()


@pytest.fixture(scope="module")
def built(cache_home: Path) -> Kernels:
    """The kernels that every other test uses, too, copied to the cache of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(compiler.SWITCH, raising=False)
        try:
            file = Path(compiler.load().library._name)
        except KernelsUnavailableError as error:
            pytest.skip(f"no C++ kernels here: {error}")
        patch.setenv("XDG_CACHE_HOME", str(cache_home))
        (cache_home / "sqe-hrm").mkdir(mode=0o700)
        if file.exists():  # not if the user's cache cannot be used
            shutil.copy2(file, cache_home / "sqe-hrm")
        return compiler.load()


FORMS = ("level", "blocks")
"""A level computed entirely in C++, and a level of blocks with torch's matrix products."""


def levels(
    kernels: Kernels,
    form: str,
    dtype: torch.dtype = torch.float32,
    *,
    heads: int = 2,
    head_dim: int = 32,
    layers: int = 2,
    expansion: float = 2.0,
) -> tuple[Level, nn.Module]:
    """A plain level and the same level in another form, with weights of `dtype`."""
    torch.manual_seed(heads + head_dim)
    plain = Level(config(heads, head_dim, expansion=expansion), layers).to(dtype)
    plain.requires_grad_(requires_grad=False)
    if form == "level":
        if not cpu.has_level(kernels, dtype):
            pytest.skip(f"oneDNN has the products in {dtype} on this processor")
        return plain, cpu.FusedLevel(plain, dtype, kernels)
    fused = copy.deepcopy(plain)
    for name, block in plain.layers.named_children():
        assert isinstance(block, Block)
        fused.layers.set_submodule(name, cpu.FusedBlock(block, dtype, kernels))
    return plain, fused


def inputs(
    batch: int, length: int, size: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """A state and its injection."""
    z, injection = torch.randn(2, batch, length, size).to(dtype)
    return z, injection


# A level


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head_dim", cpu.HEAD_DIMS)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_fast_level_computes_the_same_as_the_plain_one(
    built: Kernels, form: str, head_dim: int, length: int
) -> None:
    plain, fast = levels(built, form, head_dim=head_dim)
    rotary = rotary_table(length, head_dim, 1e4)
    z, injection = inputs(3, length, 2 * head_dim)
    torch.testing.assert_close(
        fast(z, injection, rotary), plain(z, injection, rotary), rtol=0, atol=1e-5
    )


@given(
    form=st.sampled_from(FORMS),
    sizes=st.fixed_dictionaries(
        {
            "heads": st.integers(1, 5),
            "head_dim": st.sampled_from(cpu.HEAD_DIMS),
            "layers": st.integers(1, 3),
            "expansion": st.sampled_from([1.0, 2.0, 4.0]),
        }
    ),
    batch=st.integers(1, 9),
    length=st.integers(1, 130),
    threads=st.integers(1, 7),
    size=st.sampled_from([1e-3, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_a_fast_level_computes_the_same_for_any_shape(
    built: Kernels,
    form: str,
    sizes: dict[str, Any],
    batch: int,
    length: int,
    threads: int,
    size: float,
) -> None:
    plain, fast = levels(built, form, **sizes)
    heads, head_dim = sizes["heads"], sizes["head_dim"]
    rotary = rotary_table(length, head_dim, 1e4)
    z, injection = inputs(batch, length, heads * head_dim)
    expected = plain(z * size, injection * size, rotary)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        output = fast(z * size, injection * size, rotary)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head_dim", cpu.HEAD_DIMS)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_fast_level_rounds_no_worse_in_bfloat16(
    built: Kernels, form: str, head_dim: int, length: int
) -> None:
    plain, fast = levels(built, form, torch.bfloat16, heads=3, head_dim=head_dim)
    exact = copy.deepcopy(plain).float()
    rotary = rotary_table(length, head_dim, 1e4)
    z, injection = inputs(4, length, 3 * head_dim, torch.bfloat16)
    truth = exact(z.float(), injection.float(), rotary)
    error, plain_error = fast(z, injection, rotary) - truth, plain(z, injection, rotary) - truth
    assert error.abs().max() < 0.08
    assert error.abs().mean() < 1.1 * plain_error.abs().mean()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these levels are those of x86-64")
@pytest.mark.parametrize(("level", "needs"), [("x86-64", "sse2"), ("x86-64-v3", "avx2")])
def test_narrower_processors_compute_the_same(
    built: Kernels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, level: str, needs: str
) -> None:
    if needs not in compiler._processor().split():
        pytest.skip(f"this processor has no {needs}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    quick = {"-O3": "-O1", "-march=native": f"-march={level}"}
    monkeypatch.setattr(compiler, "FLAGS", tuple(quick.get(f, f) for f in compiler.FLAGS))
    narrow = compiler.load()
    assert narrow.library._name != built.library._name
    assert cpu.has_level(narrow, torch.float32) == (needs == "avx2")
    assert not cpu.has_level(narrow, torch.bfloat16)
    cases = [("blocks", torch.float32, 1e-5), ("blocks", torch.bfloat16, 0.08)]
    if needs == "avx2":
        cases.append(("level", torch.float32, 1e-5))
    for form, dtype, tolerance in cases:
        for head_dim in cpu.HEAD_DIMS:
            plain, fast = levels(narrow, form, dtype, head_dim=head_dim)
            for length in (1, 17, 101):
                rotary = rotary_table(length, head_dim, 1e4)
                z, injection = inputs(2, length, 2 * head_dim, dtype)
                torch.testing.assert_close(
                    fast(z, injection, rotary),
                    plain(z, injection, rotary),
                    rtol=0,
                    atol=tolerance,
                )


def test_blocks_with_packed_products_compute_the_same(built: Kernels) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.08)):
        if not cpu.can_pack(dtype):
            continue
        plain, fast = levels(built, "blocks", dtype)
        for name, linear in list(fast.named_modules()):
            if isinstance(linear, Linear):
                fast.set_submodule(name, cpu.PackedLinear(linear))
        (z, injection), rotary = inputs(5, 17, 64, dtype), rotary_table(17, 32, 1e4)
        torch.testing.assert_close(
            fast(z, injection, rotary), plain(z, injection, rotary), rtol=0, atol=tolerance
        )


PRODUCTS = [(1, 16, 16), (101, 64, 48), (7, 48, 200)]
"""Numbers of rows, inputs and outputs."""


def product(kernels: Kernels, dtype: torch.dtype, x: Tensor, weight: Tensor) -> Tensor:
    """The product alone of C++, with its padding."""
    packing = cpu.Packing(dtype, kernels)
    packed, rows = packing(weight), packing.grouped(x)
    output = torch.full((len(x), packed.shape[0] * packed.shape[2]), torch.nan)
    function = getattr(kernels.library, f"product_{cpu.PRODUCT_DTYPES[dtype]}")
    function(rows.data_ptr(), packed.data_ptr(), output.data_ptr(), *rows.shape, len(weight), 2)
    return output


@pytest.mark.parametrize("dtype", cpu.DTYPES)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), PRODUCTS)
def test_a_product_alone_equals_torchs(
    built: Kernels, dtype: torch.dtype, rows: int, inputs: int, outputs: int
) -> None:
    if not cpu.has_level(built, dtype):
        pytest.skip(f"oneDNN has the products in {dtype} on this processor")
    x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    output = product(built, dtype, x, weight)
    torch.testing.assert_close(output[:, :outputs], x.float() @ weight.float().T)
    assert not output[:, outputs:].any()


def test_gates_and_ups_are_interleaved_and_padded() -> None:
    gate_up = torch.tensor([[1.0], [2], [3], [-1], [-2], [-3]])
    both = cpu.interleaved(gate_up, 2)
    assert both.flatten().tolist() == [1, 2, -1, -2, 3, 0, -3, 0]


@pytest.mark.parametrize("form", FORMS)
def test_the_memory_layout_of_inputs_does_not_matter(built: Kernels, form: str) -> None:
    plain, fast = levels(built, form)
    rotary = rotary_table(9, 32, 1e4)
    spread = torch.randn(9, 4, 2, 64)[:, :, 0].transpose(0, 1)
    expanded = torch.randn(64).expand(4, 9, 64)
    sparse_rotary = torch.stack((rotary, rotary), dim=-1)[..., 0]
    for z, injection in ((spread, expanded), (expanded, spread)):
        for table in (rotary, sparse_rotary):
            before = z.clone(), injection.clone()
            output = fast(z, injection, table)
            torch.testing.assert_close(output, plain(z, injection, rotary), rtol=0, atol=1e-5)
            assert torch.equal(z, before[0])
            assert torch.equal(injection, before[1])


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_batch_gives_an_empty_batch(built: Kernels, form: str) -> None:
    _, fast = levels(built, form)
    z, injection = inputs(0, 9, 64)
    assert fast(z, injection, rotary_table(9, 32, 1e4)).shape == (0, 9, 64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", cpu.DTYPES)
def test_tensors_of_other_shapes_or_dtypes_are_refused(
    built: Kernels, form: str, dtype: torch.dtype
) -> None:
    _, fast = levels(built, form, dtype)
    rotary = rotary_table(9, 32, 1e4)
    z, injection = inputs(2, 9, 64, dtype)
    for other in (z.double(), z[..., :32]):
        with pytest.raises(ValueError, match="not \\(B, T, 64\\)"):
            fast(other, other, rotary)
    for table in (None, rotary[:, :8], rotary.double(), rotary[..., :16], rotary_table(10, 32, 1)):
        with pytest.raises(ValueError, match="rotary"):
            fast(z, injection, table)


def test_levels_in_int8_take_float32_alone(with_int8: Kernels) -> None:
    _, _, fast = int8_levels(with_int8, torch.float32)
    z, injection = inputs(2, 9, 64)
    for other in (z.bfloat16(), z.char(), z[..., :32]):
        with pytest.raises(ValueError, match="not \\(B, T, 64\\)"):
            fast(other, injection, rotary_table(9, 32, 1e4))


@pytest.mark.parametrize("dtype", cpu.DTYPES)
def test_an_injection_of_another_shape_or_dtype_is_refused(
    built: Kernels, dtype: torch.dtype
) -> None:
    """Only levels take an injection: for blocks, torch adds it."""
    _, fast = levels(built, "level", dtype)
    z, injection = inputs(2, 9, 64, dtype)
    for other in (injection.double(), injection[:1], injection[:, :8], injection[0]):
        with pytest.raises(ValueError, match="not \\(B, T, 64\\)"):
            fast(z, other, rotary_table(9, 32, 1e4))


def attention(built: Kernels, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention without rotation over (B, T, heads, head_dim): by C++, and by torch in float64."""
    batch, length, heads, head_dim = q.shape
    qkv = torch.stack((q, k, v), dim=2).contiguous()
    rotary = torch.stack((torch.ones(length, head_dim), torch.zeros(length, head_dim)))
    output = torch.full_like(q, torch.nan, memory_format=torch.contiguous_format)
    function = getattr(built.library, f"attention_{cpu.DTYPES[q.dtype]}")
    function(
        qkv.data_ptr(), rotary.data_ptr(), output.data_ptr(), batch, length, heads, head_dim, 2
    )
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    return output, F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


@pytest.mark.parametrize("dtype", cpu.DTYPES)
@pytest.mark.parametrize("head_dim", cpu.HEAD_DIMS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("length", [1, 7, 17, 101])
def test_large_scores_do_not_overflow(
    built: Kernels, dtype: torch.dtype, head_dim: int, sign: float, length: int
) -> None:
    torch.manual_seed(length)
    shape = (2, length, 3, head_dim)
    # Scores of about 10,000, all of the same sign, which differ by a few hundred.
    q = torch.full(shape, 40.0)
    k = sign * (40.0 + torch.randn(shape))
    output, truth = attention(built, q.to(dtype), k.to(dtype), torch.randn(shape).to(dtype))
    tolerance = 0.01 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(output.double(), truth, rtol=0, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", cpu.DTYPES)
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7FC001FF, -0x3FFFFF])
def test_a_nan_stays_in_its_example(
    built: Kernels, form: str, dtype: torch.dtype, bits: int
) -> None:
    """Every bit pattern of a NaN counts."""
    _, fast = levels(built, form, dtype)
    rotary = rotary_table(17, 32, 1e4)
    clean, injection = inputs(5, 17, 64, dtype)
    nan = torch.tensor([bits], dtype=torch.int32).view(torch.float32).to(dtype)
    assert nan.isnan().all()
    for position in (0, 8, 16):
        z = clean.clone()
        z[2, position, 3] = nan[0]
        output, expected = fast(z, injection, rotary), fast(clean, injection, rotary)
        assert output[2].isnan().all()
        others = [0, 1, 3, 4]
        assert torch.equal(output[others], expected[others])


def test_a_nan_in_any_part_of_attention_stays_a_nan(built: Kernels) -> None:
    for where in range(3):
        for head_dim in cpu.HEAD_DIMS:
            parts = [torch.randn(1, 18, 2, head_dim) for _ in range(3)]
            parts[where][0, 17, 1, 5] = torch.nan
            output, truth = attention(built, *parts)
            assert torch.equal(output.isnan(), truth.isnan())


def test_the_gate_is_right_everywhere(built: Kernels) -> None:
    gate = torch.cat((torch.linspace(-100, 100, 4093), torch.tensor([0.0, torch.nan, 1e30])))
    both = torch.stack((gate, torch.ones(4096)))
    output = torch.empty(4096)
    built.library.swiglu_float32(both.data_ptr(), output.data_ptr(), 1, 4096, 1)
    truth = F.silu(gate.double())
    torch.testing.assert_close(output.double(), truth, rtol=1e-6, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_torchs_number_of_threads_is_used(
    built: Kernels, monkeypatch: pytest.MonkeyPatch, form: str, threads: int
) -> None:
    plain, fast = levels(built, form, heads=3, layers=1)
    seen: list[int] = []
    for module in fast.modules():
        for name in ("_level", "_attention", "_add_norm", "_swiglu"):
            if not hasattr(module, name):
                continue
            function: Callable[..., None] = getattr(module, name)

            def noted(*arguments: Any, function: Callable[..., None] = function) -> None:  # noqa: ANN401
                seen.append(arguments[-1])
                function(*arguments)

            monkeypatch.setattr(module, name, noted)
    (z, injection), rotary = inputs(2, 7, 96), rotary_table(7, 32, 1e4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    # From another thread, as in the engine.
    with ThreadPoolExecutor(1) as pool:
        output = pool.submit(fast, z, injection, rotary).result()
    torch.testing.assert_close(output, plain(z, injection, rotary), rtol=0, atol=1e-5)
    assert seen == [threads] * (1 if form == "level" else 4)


# A level in int8


@pytest.fixture(scope="module")
def with_int8(built: Kernels) -> Kernels:
    if not cpu.has_level(built, torch.int8):
        pytest.skip("this processor has no products of int8")
    return built


def quick_flags(level: str = "native") -> list[str]:
    """Flags for a build that takes a third of the time, and rounds as the usual one does."""
    changed = {"-O3": "-O1", "-march=native": f"-march={level}"}
    # Without expensive ones, the compiler does not fuse multiplications and additions.
    return [*(changed.get(flag, flag) for flag in compiler.FLAGS), "-fexpensive-optimizations"]


@pytest.fixture(scope="module")
def exact_attention(with_int8: Kernels) -> Kernels:
    """Kernels whose attention is float32 also on processors with bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        cache_home = Path(with_int8.library._name).parents[1]
        patch.setenv("XDG_CACHE_HOME", str(cache_home))
        patch.setattr(compiler, "FLAGS", (*quick_flags(), "-mno-avx512bf16"))
        kernels = compiler.load()
    assert not cpu.has_level(kernels, torch.bfloat16)
    return kernels


VNNI = """
#include <immintrin.h>
static inline __m256i stand_in(__m256i sums, __m256i left, __m256i right) {
  int lanes[8];
  __builtin_memcpy(lanes, &sums, 32);
  for (int i = 0; i < 32; i++)
    lanes[i / 4] += reinterpret_cast<unsigned char*>(&left)[i] *
                    reinterpret_cast<signed char*>(&right)[i];
  return _mm256_loadu_si256(reinterpret_cast<__m256i*>(lanes));
}
#define __AVXVNNI__ 1
#define _mm256_dpbusd_avx_epi32 stand_in
"""
"""A header that stands in for the instruction of processors with AVX-VNNI alone."""


@pytest.fixture(scope="module")
def narrow_int8(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """Kernels as on a processor with AVX-VNNI, whose instruction has a stand-in."""
    if "avx2" not in compiler._processor().split():
        pytest.skip("this processor has no avx2")
    folder = tmp_path_factory.mktemp("narrow")
    header = folder / "vnni.h"
    header.write_text(VNNI, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setattr(compiler, "FLAGS", (*quick_flags("x86-64-v3"), f"-include{header}"))
        return compiler.load()


def int8_levels(
    kernels: Kernels,
    inner: torch.dtype,
    **sizes: Any,  # noqa: ANN401
) -> tuple[Level, Level, nn.Module]:
    """A plain level, its emulation in int8, and its form in C++."""
    plain, _ = levels(kernels, "blocks", **sizes)
    emulated = copy.deepcopy(plain)
    emulate(emulated, inner)
    return plain, emulated, cpu.FusedLevel(plain, torch.int8, kernels)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), PRODUCTS)
@pytest.mark.parametrize("form", ["with_int8", "narrow_int8"])
def test_products_of_int8_are_exact(
    request: pytest.FixtureRequest, form: str, rows: int, inputs: int, outputs: int
) -> None:
    values = torch.randint(-127, 128, (rows, inputs))
    weight = torch.randn(outputs, inputs)
    x = (values + 128).to(torch.uint8)
    output = product(request.getfixturevalue(form), torch.int8, x, weight)
    assert torch.equal(output[:, :outputs], (values @ quantised(weight)[0].long().T).float())
    assert not output[:, outputs:].any()


INT8_SHAPES = {
    "sizes": st.fixed_dictionaries(
        {
            "heads": st.integers(1, 5),
            "head_dim": st.sampled_from(cpu.HEAD_DIMS),
            "layers": st.integers(1, 3),
            "expansion": st.sampled_from([1.0, 2.0, 4.0]),
        }
    ),
    "batch": st.integers(1, 5),
    "length": st.integers(1, 130),
    "threads": st.integers(1, 4),
    "size": st.sampled_from([0.0, 1e-3, 1.0]),
}


def int8_outputs(
    kernels: Kernels,
    inner: torch.dtype,
    sizes: dict[str, Any],
    batch: int,
    length: int,
    threads: int,
    size: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of `int8_levels` for random inputs of a magnitude of `size`."""
    plain, emulated, fast = int8_levels(kernels, inner, **sizes)
    rotary = rotary_table(length, sizes["head_dim"], 1e4)
    z, injection = size * torch.stack(inputs(batch, length, sizes["heads"] * sizes["head_dim"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        output = fast(z, injection, rotary)
    assert output.dtype == torch.float32
    return plain(z, injection, rotary), emulated(z, injection, rotary), output


@pytest.mark.parametrize("form", ["exact_attention", "narrow_int8"])
@given(**INT8_SHAPES)
@settings(max_examples=30, deadline=None)
def test_a_block_in_int8_equals_its_emulation(
    request: pytest.FixtureRequest,
    form: str,
    sizes: dict[str, Any],
    **shape: Any,  # noqa: ANN401
) -> None:
    """Up to float32's rounding, by which one number in many thousands becomes another integer.

    That changes a row of a block, but all rows of the next one.
    """
    kernels = request.getfixturevalue(form)
    one_block = {**sizes, "layers": 1, "heads": min(sizes["heads"], 3)}
    _, emulated, output = int8_outputs(kernels, torch.float32, one_block, **shape)
    error = (output - emulated).abs().amax(-1).flatten()
    assert error.max() < 0.2
    assert (error > 1e-5).sum() <= 3 + len(error) / 2


@given(**INT8_SHAPES)
@settings(max_examples=40, deadline=None)
def test_a_level_in_int8_rounds_no_worse_than_its_emulation(
    with_int8: Kernels,
    sizes: dict[str, Any],
    **shape: Any,  # noqa: ANN401
) -> None:
    plain, emulated, output = int8_outputs(with_int8, torch.bfloat16, sizes, **shape)
    error, emulated_error = (output - plain).abs(), (emulated - plain).abs()
    assert error.max() < 0.5
    assert error.mean() <= 1.3 * emulated_error.mean()


def test_neither_threads_nor_neighbours_change_an_example_in_int8(
    with_int8: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, fast = int8_levels(with_int8, torch.float32, heads=3)
    rotary = rotary_table(101, 32, 1e4)
    spread = torch.randn(101, 4, 2, 96)[:, :, 0].transpose(0, 1)
    injection = torch.randn(96).expand(4, 101, 96)
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        output = fast(spread, injection, rotary)
        for i in range(4):
            alone = fast(spread[i : i + 1], injection[i : i + 1], rotary, 7)
            assert torch.equal(alone[0], output[i, :7])


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7FC001FF, -0x3FFFFF])
def test_a_nan_stays_in_its_example_in_int8(with_int8: Kernels, bits: int) -> None:
    _, _, fast = int8_levels(with_int8, torch.float32)
    rotary = rotary_table(17, 32, 1e4)
    clean, injection = inputs(3, 17, 64)
    expected = fast(clean, injection, rotary)
    for position in (0, 8, 16):
        z = clean.clone()
        z[1, position, 3] = torch.tensor([bits], dtype=torch.int32).view(torch.float32)[0]
        output = fast(z, injection, rotary)
        assert output[1].isnan().all()
        assert torch.equal(output[[0, 2]], expected[[0, 2]])


# A step


@given(
    dtype=st.sampled_from(list(cpu.PRODUCT_DTYPES)),
    sizes=st.fixed_dictionaries(
        {
            "heads": st.integers(1, 5),
            "head_dim": st.sampled_from(cpu.HEAD_DIMS),
            "H_layers": st.integers(1, 3),
            "L_layers": st.integers(1, 3),
            "H_cycles": st.integers(1, 3),
            "L_cycles": st.integers(1, 3),
            "seq_len": st.integers(2, 40),
        }
    ),
    batch=st.integers(0, 3),
    threads=st.integers(1, 7),
)
@settings(max_examples=60, deadline=None)
def test_a_step_in_one_call_equals_its_levels(
    built: Kernels, dtype: torch.dtype, sizes: dict[str, Any], batch: int, threads: int
) -> None:
    assume(cpu.has_level(built, dtype))
    state_dtype = torch.float32 if dtype == torch.int8 else dtype
    fast = accelerate(network(state_dtype, **sizes), int8=dtype == torch.int8)
    assert fast.fused_step is not None
    before, x = random_state(fast, batch)
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        expected = fast.step(before, x, fast.levels)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        copied = fast.step(before, x)
        fast.step_in_place(before, x)
    for after in (copied, before):
        assert torch.equal(after.z_H, expected.z_H)
        assert torch.equal(after.z_L, expected.z_L)


def random_state(network: HRM, batch: int) -> tuple[State, Tensor]:
    """A state of `network`, and an input."""
    config = network.config
    shape = (3, batch, config.puzzle_emb_len + config.seq_len, config.hidden_size)
    z_H, z_L, x = torch.randn(shape).to(network.forward_dtype)
    return State(z_H, z_L), x


@pytest.mark.parametrize("dtype", cpu.DTYPES)
def test_a_step_in_one_call_refuses_other_shapes_and_dtypes(
    built: Kernels, dtype: torch.dtype
) -> None:
    if not cpu.has_level(built, dtype):
        pytest.skip(f"oneDNN has the products in {dtype} on this processor")
    step = accelerate(network(dtype)).fused_step
    assert step is not None
    state, x = random_state(network(dtype), batch=2)
    for other in (x.double(), x[:1], x[:, :5], x[..., :32], x.transpose(0, 1).contiguous()):
        for wrong in ((state, other), (State(other, state.z_L), x), (State(state.z_H, other), x)):
            with pytest.raises(ValueError, match=r"not \(B, T, 64\)|contiguous|no float32"):
                step(*wrong)


# The network


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The form that networks are accelerated to."""
    if request.param == "blocks":
        monkeypatch.setattr(cpu, "has_level", lambda *_: False)
    return str(request.param)


@pytest.mark.parametrize("head_dim", cpu.HEAD_DIMS)
def test_a_step_of_an_accelerated_network_is_the_same(
    built: Kernels, form: str, head_dim: int
) -> None:
    plain = network(head_dim=head_dim)
    fast = accelerate(copy.deepcopy(plain))
    assert_same_step(plain, fast)
    parts = [f"C++ ({built.compiler.label})", *(["packed weights"] if form == "blocks" else [])]
    assert describe(fast) == "; ".join((*parts, "float32"))
    kind = cpu.FusedLevel if form == "level" else cpu.FusedBlock
    assert sum(isinstance(module, kind) for module in fast.modules()) == 2
    assert not any(isinstance(module, Block) for module in fast.modules())


@pytest.mark.parametrize("dtype", cpu.DTYPES)
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"pos_encodings": "learned"}, "learned positions"),
        ({"head_dim": 24}, "heads of 24"),
        ({"head_dim": 8}, "heads of 8"),
        ({"puzzle_emb_ndim": 0}, None),
        ({"num_puzzle_identifiers": 3, "H_layers": 2, "L_layers": 3}, None),
    ],
)
@pytest.mark.usefixtures("form")
def test_every_network_works(
    built: Kernels, dtype: torch.dtype, fields: dict[str, Any], reason: str | None
) -> None:
    plain = network(dtype, **fields)
    fast = accelerate(copy.deepcopy(plain))
    assert_same_step(plain, fast, 1e-4 if dtype == torch.float32 else 0.5)
    if reason:
        assert "plain torch, because there is no C++ for" in describe(fast)
        assert reason in describe(fast)
    else:
        assert built.compiler.label in describe(fast)


@pytest.mark.parametrize("head_dim", cpu.HEAD_DIMS)
def test_a_network_computes_in_int8(with_int8: Kernels, head_dim: int) -> None:
    plain = network(head_dim=head_dim)
    fast = accelerate(copy.deepcopy(plain), int8=True)
    assert describe(fast) == f"C++ ({with_int8.compiler.label}); int8"
    assert product_dtype(fast) == torch.int8
    assert fast.forward_dtype == torch.float32
    emulated = copy.deepcopy(plain)
    for level in (emulated.H_level, emulated.L_level):
        emulate(level)
    assert_same_step(emulated, fast, 0.2)


@pytest.mark.parametrize(
    ("fields", "missing", "reason"),
    [
        ({"pos_encodings": "learned"}, None, "there is no C++ for learned positions"),
        ({"head_dim": 24}, None, "there is no C++ for heads of 24"),
        ({}, "switch", "SQE_CPU_KERNELS is off"),
        ({}, "compiler", "CXX names a program that does not exist"),
        ({}, "instruction", "this processor has no products of int8"),
    ],
)
def test_what_cannot_be_int8_is_float32_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fields: dict[str, Any],
    missing: str | None,
    reason: str,
) -> None:
    if missing == "switch":
        monkeypatch.setenv(compiler.SWITCH, "off")
    if missing == "compiler":
        monkeypatch.setenv("CXX", "no-such-program")
    if missing == "instruction":
        has_level = cpu.has_level
        monkeypatch.setattr(
            cpu, "has_level", lambda built, dtype: dtype != torch.int8 and has_level(built, dtype)
        )
    plain = network(**fields)
    fast = accelerate(copy.deepcopy(plain), int8=True)
    assert caplog.messages[0].startswith(f"dtype float32, not int8: {reason}")
    assert product_dtype(fast) == torch.float32
    assert describe(fast).endswith("; float32")
    assert_same_step(plain, fast)


def test_networks_in_other_dtypes_stay_plain() -> None:
    fast = accelerate(network(torch.float64))
    assert step_from(fast)[0].dtype == torch.float64
    assert "there is no C++ for torch.float64" in describe(fast)


def test_weights_are_cast_once_and_the_puzzle_table_never() -> None:
    fast = accelerate(network(torch.bfloat16))
    for name, weight in [*fast.named_parameters(), *fast.named_buffers()]:
        kept = name in {"puzzle_emb.weights", "rotary"}
        assert weight.dtype == (torch.float32 if kept else torch.bfloat16), name
        assert not weight.requires_grad


@pytest.mark.usefixtures("form")
def test_replaced_weights_are_freed() -> None:
    fast = accelerate(network())
    assert cpu.can_pack(torch.float32)
    assert not any("self_attn" in name or "proj" in name for name in fast.state_dict())


def test_a_network_is_accelerated_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    plain = network()
    assert describe(plain) == "plain torch; float32"
    with caplog.at_level(logging.INFO, "hrm.kernels"):
        fast = accelerate(plain)
        assert fast is plain
        inside = list(fast.modules())
        assert accelerate(fast) is fast
    assert list(fast.modules()) == inside
    assert caplog.messages == [f"kernels: {describe(fast)}"]


# The shipped checkpoint


@pytest.fixture(scope="module")
def demo() -> tuple[HRM, Batch]:
    checkpoint = load_checkpoint(DEMO)
    converter = Converter(checkpoint.conversion)
    lines = (DEMO / "messages.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [AcceptedPair.model_validate_json(line) for line in lines]
    examples = [converter.convert(pair.prompt, pair.completion, pair.puzzle_id) for pair in pairs]
    return checkpoint.build(), encode(examples, checkpoint.config)


@pytest.fixture(scope="module")
def demo_answers(demo: tuple[HRM, Batch]) -> dict[HaltedBy, LoopOutput]:
    """The plain network's answers in float32."""
    return answers_of(*demo)


def answers_of(network: HRM, batch: Batch) -> dict[HaltedBy, LoopOutput]:
    """The answers under each halting rule."""
    rules = list(HaltedBy)
    outputs = evaluate_rules(network, batch, rules, max_steps=DEMO_STEPS)
    return dict(zip(rules, outputs, strict=True))


def fast_demo(demo: tuple[HRM, Batch], dtype: torch.dtype) -> HRM:
    fast = copy.deepcopy(demo[0])
    int8 = dtype == torch.int8
    fast.forward_dtype = torch.float32 if int8 else dtype
    return accelerate(fast, int8=int8)


@pytest.mark.usefixtures("form")
def test_the_demo_takes_the_same_steps(built: Kernels, demo: tuple[HRM, Batch]) -> None:
    plain, batch = demo
    fast = fast_demo(demo, torch.float32)
    assert built.compiler.label in describe(fast)
    with torch.inference_mode():
        few = batch[slice(0, 12)]
        x = plain.embed(few.inputs, plain.puzzle_embedding(few.puzzle_ids))
        assert torch.equal(fast.embed(few.inputs, fast.puzzle_embedding(few.puzzle_ids)), x)
        state = plain.initial_state(len(few))
        for _ in range(4):
            ours, state = fast.step(state, x), plain.step(state, x)
            torch.testing.assert_close(ours, state, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", cpu.PRODUCT_DTYPES)
def test_the_demo_answers_the_same(
    built: Kernels,
    demo: tuple[HRM, Batch],
    demo_answers: dict[HaltedBy, LoopOutput],
    dtype: torch.dtype,
) -> None:
    fast = fast_demo(demo, dtype)
    assert built.compiler.label in describe(fast)
    labels = demo[1].labels
    given = labels >= 0
    assert len(labels) == 84
    for halting, ours in answers_of(fast, demo[1]).items():
        theirs = demo_answers[halting]
        if dtype in {torch.float32, torch.int8}:
            assert torch.equal(ours.steps, theirs.steps)
        if dtype == torch.float32:
            assert torch.equal(ours.predictions, theirs.predictions)
        assert torch.equal(ours.predictions[given], theirs.predictions[given])


# The compiler


def test_a_missing_compiler_leaves_blocks_plain_and_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    plain = network()
    fast = accelerate(copy.deepcopy(plain))
    assert_same_step(plain, fast)
    assert "plain torch, because no C++ compiler was found: install g++" in describe(fast)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-program", "CXX names a program that does not exist"),
        ("g++ 'open", "CXX is not a command"),
        ("false", "the C.. compiler failed: exit status 1"),
        ("true", "the kernels cannot be loaded"),  # builds an empty file
        ("g++ -include no_such_header.h", "the C.. compiler failed: .*no_such_header.h"),
    ],
)
def test_a_broken_compiler_leaves_blocks_plain_and_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, reason: str
) -> None:
    monkeypatch.setenv("CXX", command)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plain = network()
    fast = accelerate(copy.deepcopy(plain))
    assert_same_step(plain, fast)
    assert re.search(f"plain torch, because {reason}", describe(fast))
    assert "\n" not in describe(fast)


def test_kernels_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiler.SWITCH, "off")
    plain = network()
    fast = accelerate(copy.deepcopy(plain))
    assert describe(fast) == "plain torch, because SQE_CPU_KERNELS is off; float32"
    state = plain.initial_state(3)
    x = torch.randn(state.z_H.shape)
    for own, other in zip(fast.step(state, x), plain.step(state, x), strict=True):
        assert torch.equal(own, other), "to the last bit"


def test_networks_work_without_packed_weights(
    built: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "can_pack", lambda _: False)
    monkeypatch.setattr(cpu, "has_level", lambda *_: False)
    plain = network()
    fast = accelerate(copy.deepcopy(plain))
    assert_same_step(plain, fast)
    assert describe(fast) == f"C++ ({built.compiler.label}); plain weights; float32"
    assert any(isinstance(module, Linear) for module in fast.L_level.modules())


@pytest.mark.parametrize("packable", [{torch.float32}, set[torch.dtype]()])
def test_without_bfloat16_products_are_of_float32_and_rounded_once(
    built: Kernels, monkeypatch: pytest.MonkeyPatch, packable: set[torch.dtype]
) -> None:
    monkeypatch.setattr(cpu, "can_pack", lambda dtype: dtype in packable)
    monkeypatch.setattr(cpu, "has_level", lambda *_: False)
    plain = network(torch.bfloat16)
    fast = accelerate(copy.deepcopy(plain))
    assert describe(fast) == f"C++ ({built.compiler.label}); products in float32; bfloat16"
    assert_same_step(plain, fast, 0.5)
    linear = plain.H_level.get_submodule("layers.0.mlp.down_proj")
    assert isinstance(linear, Linear)
    x = torch.randn(3, linear.weight.shape[1]).bfloat16()
    exact = (x.double() @ linear.weight.bfloat16().double().T).bfloat16()
    output = fast.H_level.get_submodule("layers.0.down_proj")(x)
    torch.testing.assert_close(output, exact, rtol=2**-7, atol=1e-5)  # one in the last place
    assert not any(key.startswith(("H_level", "L_level")) for key in fast.state_dict())


def test_the_kernels_are_built_once(built: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_build", None)
    assert Path(compiler.load().library._name) == Path(built.library._name)


def test_each_processor_and_compiler_has_its_own_build(monkeypatch: pytest.MonkeyPatch) -> None:
    found = compiler.Compiler(("g++",), "g++ 12")
    names = {compiler._digest(found, "-fopenmp"), compiler._digest(found, "/lib/libgomp.so.1")}
    names.add(compiler._digest(compiler.Compiler(("g++",), "g++ 13"), "-fopenmp"))
    monkeypatch.setattr(compiler, "_processor", lambda: "another")
    names.add(compiler._digest(found, "-fopenmp"))
    assert len(names) == 4


@pytest.mark.parametrize(
    ("version", "label"),
    [
        ("g++ (Debian 12.2.0-14+deb12u1) 12.2.0", "g++ 12.2.0"),
        ("g++ (GCC) 11.5.0 20240719 (Red Hat 11.5.0-2)", "g++ 11.5.0"),
        ("", "g++"),
    ],
)
def test_a_compilers_label_is_its_program_and_version(version: str, label: str) -> None:
    assert compiler.Compiler(("/usr/bin/g++", "-m64"), version).label == label


@pytest.fixture
def copied(
    built: Kernels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[Path, list[Path]]:
    """A cache folder, and where builds went: a build just copies the file of `built`."""
    content = Path(built.library._name).read_bytes()
    places: list[Path] = []

    def copy_it(command: list[str]) -> str:
        if "--version" in command:
            return built.compiler.version
        partial = Path(command[-1])
        places.append(partial.parent)
        partial.write_bytes(content)
        return ""

    monkeypatch.setattr(compiler, "_run", copy_it)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "sqe-hrm", places


def test_only_the_user_can_access_the_cache(copied: tuple[Path, list[Path]]) -> None:
    folder, places = copied
    compiler.load()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert places == [folder]
    assert [file.suffix for file in folder.iterdir()] == [".so"]


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"no library"])
def test_a_damaged_file_is_built_again(copied: tuple[Path, list[Path]], content: bytes) -> None:
    folder, places = copied
    folder.mkdir(mode=0o700, parents=True)
    name = compiler._digest(compiler._find_compiler(), compiler._openmp())
    (folder / f"{name}.so").write_bytes(content)
    compiler.load()
    compiler.load()
    assert places == [folder]


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_cache_that_others_can_write_is_not_trusted(
    copied: tuple[Path, list[Path]], mode: int
) -> None:
    folder, places = copied
    compiler.load()
    folder.chmod(mode)
    compiler.load()
    assert len(places) == 2
    assert places[1] != folder
    assert not places[1].exists()


def test_a_cache_of_another_user_is_not_trusted(
    copied: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, places = copied
    compiler.load()
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    compiler.load()
    assert len(places) == 2
    assert places[1] != folder


def test_a_link_is_not_used_as_cache(copied: tuple[Path, list[Path]]) -> None:
    folder, places = copied
    elsewhere = folder.parent.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    folder.parent.mkdir()
    folder.symlink_to(elsewhere)
    compiler.load()
    assert not list(elsewhere.iterdir())
    assert not places[0].exists()


def test_a_cache_that_cannot_be_written_is_not_needed(
    copied: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, places = copied
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compiler.load()
    assert not places[0].exists()


def test_a_full_cache_is_not_needed(
    copied: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, places = copied
    make = tempfile.mkstemp

    def full(*, prefix: str, suffix: str, dir: Path) -> tuple[int, str]:  # noqa: A002
        if dir == folder:
            raise OSError(28, "No space left on device")
        return make(prefix=prefix, suffix=suffix, dir=dir)

    monkeypatch.setattr(tempfile, "mkstemp", full)
    compiler.load()
    assert len(places) == 1
    assert places[0] != folder


def test_several_builds_may_run_at_once(built: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(built.library._name).parent.parent / "at_once"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    # Without -O3 for a quick build: this test is about files.
    monkeypatch.setattr(compiler, "FLAGS", tuple(f for f in compiler.FLAGS if f != "-O3"))
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: compiler.load(), range(2)))
    assert [Path(file.library._name).parent for file in both] == [folder / "sqe-hrm"] * 2
    assert len(list((folder / "sqe-hrm").iterdir())) == 1
    plain, fast = levels(both[1], "blocks")
    (z, injection), rotary = inputs(2, 5, 64), rotary_table(5, 32, 1e4)
    torch.testing.assert_close(
        fast(z, injection, rotary), plain(z, injection, rotary), rtol=0, atol=1e-5
    )


def test_the_process_has_one_openmp_runtime(built: Kernels) -> None:
    code = (
        "from hrm.kernels.compiler import load; load();"
        "print(open('/proc/self/maps', encoding='utf-8').read())"
    )
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mapped = {line.split()[-1] for line in maps.stdout.splitlines() if "/" in line}
    assert built.library._name in mapped
    assert len({name for name in mapped if re.search(r"lib(g|i)?omp", name)}) == 1


# The dtype


@pytest.mark.parametrize(("ratio", "dtype"), [(1.29, torch.float32), (1.3, torch.bfloat16)])
def test_a_cpus_dtype_is_measured(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ratio: float,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(cpu, "can_pack", lambda _: True)
    monkeypatch.setattr(kernels, "_speed_ratio", lambda: ratio)
    with caplog.at_level(logging.INFO, "hrm.kernels"):
        assert fastest_dtype("cpu") == dtype
    assert caplog.messages == [
        f"dtype {cpu.DTYPES[dtype]}: products run 1.3 times as fast in bfloat16 as in float32 here"
    ]


def test_a_cpu_without_bfloat16_uses_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "can_pack", lambda dtype: dtype != torch.bfloat16)
    assert fastest_dtype("cpu") == torch.float32


def test_measuring_leaves_the_threads_as_they_were() -> None:
    threads = torch.get_num_threads()
    assert kernels._speed_ratio() > 0
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_a_gpus_dtype_follows_from_its_compute_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert fastest_dtype("cuda:0") == dtype


def test_other_devices_use_float32() -> None:
    assert fastest_dtype("mps") == torch.float32
    meta = HRM(config()).to("meta")
    assert "there is no faster form for meta" in describe(accelerate(meta, int8=True))
    assert product_dtype(meta) == torch.float32
    assert isinstance(meta.L_level, Level)
