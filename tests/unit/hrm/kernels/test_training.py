"""Levels in training compute the same as the plain ones, with the same gradients."""

import copy
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hrm.kernels import compiler, cpu, training
from hrm.kernels.compiler import Kernels, KernelsUnavailableError
from hrm.kernels.training import TrainedLevel, TrainedLevels
from hrm.model.network import HRM, Block, Level, rotary_table
from tests.support.networks import config, network

LENGTHS = (1, 2, 7, 17, 101, 130)


@pytest.fixture(scope="module")
def built() -> Kernels:
    found = compiler.kernels()
    if isinstance(found, KernelsUnavailableError):
        pytest.skip(f"no C++ kernels here: {found}")
    return found


def level_of(dtype: torch.dtype = torch.float32, *, heads: int = 2, head_dim: int = 32) -> Level:
    """A plain level with weights in float32, but rounded to `dtype`."""
    torch.manual_seed(0)
    level = Level(config(heads, head_dim), 2)
    for parameter in level.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return level


def inputs(batch: int, length: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A level's state and injection, and the gradient of its output."""
    generator = torch.Generator().manual_seed(1)
    z, injection, given = torch.randn(3, batch, length, size, generator=generator).to(dtype)
    return z, injection, given


def gradients(
    call: Callable[..., Tensor], level: Level, given: tuple[Tensor, Tensor, Tensor], head_dim: int
) -> list[Tensor]:
    """Output of `call`, and the gradients of state, injection and weights."""
    z, injection = (each.detach().clone().requires_grad_() for each in given[:2])
    level.zero_grad()
    output = call(z, injection, rotary_table(z.shape[1], head_dim, 1e4))
    torch.autograd.backward(output, given[2])
    found = [output.detach(), z.grad, injection.grad, *(each.grad for each in level.parameters())]
    return [each for each in found if each is not None]


def assert_same(level: Level, kernels: Kernels, length: int, head_dim: int) -> None:
    fast = TrainedLevel(level, torch.float32, kernels)
    given = inputs(2, length, 2 * head_dim, torch.float32)
    theirs = gradients(level, level, given, head_dim)
    ours = gradients(fast, level, given, head_dim)
    assert len(ours) == len(theirs) == 3 + 8
    for own, expected in zip(ours, theirs, strict=True):
        assert own.dtype == expected.dtype
        torch.testing.assert_close(
            own, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
        )


@pytest.mark.parametrize("head_dim", cpu.HEAD_DIMS)
@pytest.mark.parametrize("length", LENGTHS)
def test_output_and_gradients_are_the_plain_levels(
    built: Kernels, length: int, head_dim: int
) -> None:
    assert_same(level_of(head_dim=head_dim), built, length, head_dim)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these levels are those of x86-64")
@pytest.mark.parametrize(("level", "needs"), [("x86-64", "sse2"), ("x86-64-v3", "avx2")])
def test_gradients_are_right_on_narrower_processors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, level: str, needs: str, built: Kernels
) -> None:
    if needs not in compiler._processor().split():
        pytest.skip(f"this processor has no {needs}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    quick = {"-O3": "-O1", "-march=native": f"-march={level}"}
    monkeypatch.setattr(compiler, "FLAGS", tuple(quick.get(f, f) for f in compiler.FLAGS))
    narrow = compiler.load()
    assert narrow.library._name != built.library._name
    for head_dim in cpu.HEAD_DIMS:
        for length in (1, 17, 101):
            assert_same(level_of(head_dim=head_dim), narrow, length, head_dim)


def test_gradients_in_bfloat16_are_no_further_from_the_truth(built: Kernels) -> None:
    level = level_of(torch.bfloat16)
    given = inputs(3, 101, 64, torch.bfloat16)
    wide = tuple(each.float() for each in given)
    truth = gradients(level, level, (wide[0], wide[1], wide[2]), 32)
    theirs = gradients(level, level, given, 32)
    ours = gradients(TrainedLevel(level, torch.bfloat16, built), level, given, 32)
    for own, plain, true in zip(ours, theirs, truth, strict=True):
        assert own.dtype == plain.dtype
        error, allowed = ((each.float() - true).square().mean().sqrt() for each in (own, plain))
        assert error <= 1.2 * allowed
        assert error > 0


def test_the_result_does_not_depend_on_the_number_of_threads(built: Kernels) -> None:
    level, given = level_of(), inputs(3, 17, 64, torch.float32)
    fast, threads = TrainedLevel(level, torch.float32, built), torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            functions = fast._blocks[0].functions
            x, rotary = given[0], rotary_table(17, 32, 1e4)
            wide = torch.cat(given, -1)
            found.append(
                [
                    functions.attention_gradient(wide, rotary, x),
                    functions.add_norm_gradient(x, given[1], given[2]),
                    functions.swiglu_gradient(wide[..., :128].contiguous(), x),
                ]
            )
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_nan_stays_in_its_example(built: Kernels) -> None:
    level = level_of()
    z, injection, given = inputs(2, 7, 64, torch.float32)
    given[1, 3, 5] = torch.nan
    fast = TrainedLevel(level, torch.float32, built)
    _, dz, _, *weights = gradients(fast, level, (z, injection, given), 32)
    assert dz[1].isnan().all()
    assert dz[0].isfinite().all()
    assert all(each.isnan().any() for each in weights)


def test_a_gradient_may_have_any_memory_layout(built: Kernels) -> None:
    level = level_of()
    fast = TrainedLevel(level, torch.float32, built)
    z, injection, given = inputs(2, 7, 64, torch.float32)
    turned = tuple(each.transpose(0, 1).contiguous().transpose(0, 1) for each in (z, injection))
    spread = given[:, :1].expand_as(given)
    expected = gradients(fast, level, (z, injection, spread.contiguous()), 32)
    found = gradients(fast, level, (turned[0], turned[1], spread), 32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_tensors_of_other_shapes_or_dtypes_are_refused(built: Kernels) -> None:
    fast = TrainedLevel(level_of(), torch.float32, built)
    z, injection, _ = inputs(2, 7, 64, torch.float32)
    with pytest.raises(ValueError, match="float32 rotary table of"):
        fast(z, injection, rotary_table(6, 32, 1e4))
    with pytest.raises(ValueError, match=r"torch\.float32 on the CPU: .* torch\.float64"):
        fast(z.double(), injection.double(), rotary_table(7, 32, 1e4))


@pytest.mark.parametrize("positions", [0, 1, 9, 17, 30])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("recorded", [True, False], ids=["with gradient", "without"])
def test_wanted_positions_are_those_of_the_whole_result(
    built: Kernels, positions: int, threads: int, *, recorded: bool
) -> None:
    level, rotary, before = level_of(), rotary_table(17, 32, 1e4), torch.get_num_threads()
    fast = TrainedLevel(level, torch.float32, built)
    z, injection, _ = inputs(3, 17, 64, torch.float32)
    torch.set_num_threads(threads)
    try:
        with torch.set_grad_enabled(recorded):
            found = fast(z, injection, rotary, positions)
    finally:
        torch.set_num_threads(before)
    expected = level(z, injection, rotary, positions)
    assert found.shape == expected.shape == (3, min(positions, 17), 64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# Weights that change.


@pytest.mark.parametrize("dtype", cpu.DTYPES)
@pytest.mark.parametrize("recorded", [True, False], ids=["with gradient", "without"])
def test_new_weights_count_after_a_refresh(
    built: Kernels, dtype: torch.dtype, *, recorded: bool
) -> None:
    level, rotary = level_of(dtype), rotary_table(7, 32, 1e4)
    fast = TrainedLevel(level, dtype, built)
    z, injection, _ = inputs(2, 7, 64, dtype)
    before = level(z, injection, rotary)
    for number, block in enumerate(level.layers):
        assert isinstance(block, Block)
        for each, weight in enumerate(cpu.weights_of(block)):
            with torch.no_grad():
                weight.mul_(1 + 0.5 * (number + each)).add_(0.01)
    after = level(z, injection, rotary)
    assert (after - before).abs().max() > 0.5
    fast.refresh()
    with torch.set_grad_enabled(recorded):
        tolerance = 1e-4 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(fast(z, injection, rotary), after, rtol=0, atol=tolerance)


@pytest.mark.parametrize("number", range(8))
def test_a_refresh_takes_over_every_weight(built: Kernels, number: int) -> None:
    level, rotary = level_of(), rotary_table(7, 32, 1e4)
    fast = TrainedLevel(level, torch.float32, built)
    z, injection, _ = inputs(2, 7, 64, torch.float32)
    with torch.no_grad():
        before = fast(z, injection, rotary)
        list(level.parameters())[number].mul_(1.5)
        fast.refresh()
        assert not torch.allclose(before, fast(z, injection, rotary), atol=1e-3)
        torch.testing.assert_close(
            fast(z, injection, rotary), level(z, injection, rotary), rtol=0, atol=1e-5
        )


# Where there is no faster form.


def other_levels(network: HRM) -> TrainedLevels:
    levels = TrainedLevels(network)
    levels.refresh()
    assert levels.levels == network.levels
    return levels


def test_other_networks_and_devices_train_with_plain_levels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = KernelsUnavailableError("no C++ compiler was found: install g++")
    cases = {
        "there is no C++ for heads of 8": network(head_dim=8),
        "there is no C++ for learned positions": network(pos_encodings="learned"),
        "there is no faster form of training for meta": copy.deepcopy(network()).to("meta"),
    }
    for reason, odd in cases.items():
        assert other_levels(odd).form == f"plain torch, because {reason}"
    monkeypatch.setattr(training, "kernels", lambda: found)
    assert other_levels(network()).form == f"plain torch, because {found}"
    monkeypatch.setenv(compiler.SWITCH, "off")
    assert other_levels(network()).form == f"plain torch, because {compiler.SWITCH} is off"


def test_the_form_names_the_compiler(built: Kernels) -> None:
    plain = network()
    levels = TrainedLevels(plain)
    assert levels.levels != plain.levels
    assert levels.form == f"C++ ({built.compiler.label})"


def test_processors_with_fast_products_of_their_own_compute_all_calls_by_blocks(
    built: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "has_level", lambda *_: False)
    level, rotary = level_of(), rotary_table(7, 32, 1e4)
    fast = TrainedLevel(level, torch.float32, built)
    z, injection, _ = inputs(2, 7, 64, torch.float32)
    with torch.no_grad():
        found = fast(z, injection, rotary)
    assert fast._fused is None
    torch.testing.assert_close(found, level(z, injection, rotary), rtol=0, atol=1e-5)
