"""The form of the network's blocks for GPUs gives the plain ones' numbers; no GPU is needed."""

import copy
from typing import Any

import pytest
import torch

from hrm import kernels
from hrm.kernels import cpu, cuda
from hrm.network import Block
from tests.unit.small_networks import assert_same_step, network, step_from


@pytest.mark.parametrize("dtype", cpu.DTYPES)
@pytest.mark.parametrize("fields", [{}, {"head_dim": 16}, {"pos_encodings": "learned"}])
def test_the_form_for_gpus_is_the_same(dtype: torch.dtype, fields: dict[str, Any]) -> None:
    plain = network(dtype, **fields)
    fast = copy.deepcopy(plain)
    kernels._cast(fast)
    cuda.fuse(fast, cuda.Functions())
    assert not any(isinstance(module, Block) for module in fast.modules())
    for ours, theirs in zip(step_from(fast), step_from(plain), strict=True):
        assert torch.equal(ours, theirs)


def test_its_functions_can_be_compiled() -> None:
    plain = network()
    fast = copy.deepcopy(plain)
    functions = cuda.Functions.compiled("eager")
    cuda.fuse(fast, functions)
    for batch in (1, 2, 5):
        for ours, theirs in zip(step_from(fast, 0, batch), step_from(plain, 0, batch), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_gpu_has_the_fused_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_spec", lambda _: True)
    monkeypatch.setattr(cuda.Functions, "compiled", cuda.Functions)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    plain = network()
    fast = copy.deepcopy(plain)
    assert cuda.accelerate(fast) == "fused by torch.compile"
    assert_same_step(plain, fast, 1e-6)
    assert not any(isinstance(module, Block) for module in fast.modules())


def test_without_triton_a_gpu_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_spec", lambda _: None)
    plain = network()
    assert cuda.accelerate(plain) == "plain torch, because there is no triton"
    assert all(isinstance(block, Block) for block in plain.L_level.layers)


def test_a_failing_compilation_leaves_a_gpu_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: type[cuda.Functions]) -> cuda.Functions:
        raise RuntimeError("no C compiler\nat all")

    monkeypatch.setattr(cuda, "find_spec", lambda _: True)
    monkeypatch.setattr(cuda.Functions, "compiled", classmethod(failing))
    plain = network()
    said = "plain torch, because torch.compile failed: no C compiler at all"
    assert cuda.accelerate(plain) == said
    assert all(isinstance(block, Block) for block in plain.L_level.layers)
