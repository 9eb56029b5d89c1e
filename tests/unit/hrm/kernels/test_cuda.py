"""Blocks compiled by torch compute the same as plain ones; a GPU uses its fastest correct form.

No GPU is needed.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from hrm import kernels
from hrm.kernels import cpu, cuda
from hrm.model.network import HRM, Block
from tests.support.networks import assert_same_step, network, step_from

PLAIN = partial(cuda.FusedBlock, functions=cuda.Functions())
"""The compiled form, before it is compiled."""


class OtherBlock(cuda.FusedBlock):
    """A stand-in for Triton's block."""

    def __init__(self, block: Block) -> None:
        super().__init__(block, cuda.Functions())


def blocks_of(network: HRM) -> set[type]:
    levels = (network.H_level, network.L_level)
    return {type(block) for level in levels for block in level.layers}


@pytest.fixture(autouse=True)
def attention_backends() -> Iterator[None]:
    enabled = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    yield
    torch.backends.cuda.enable_cudnn_sdp(enabled)


# The compiled form


@pytest.mark.parametrize("dtype", cpu.DTYPES)
@pytest.mark.parametrize("fields", [{}, {"head_dim": 16}, {"pos_encodings": "learned"}])
def test_the_compiled_form_is_the_same(dtype: torch.dtype, fields: dict[str, Any]) -> None:
    plain = network(dtype, **fields)
    fast = copy.deepcopy(plain)
    kernels._cast(fast)
    cuda.fuse(fast, PLAIN)
    assert blocks_of(fast) == {cuda.FusedBlock}
    for ours, theirs in zip(step_from(fast), step_from(plain), strict=True):
        assert torch.equal(ours, theirs)


def test_code_is_compiled_for_any_number_of_rows_and_fixed_other_sizes() -> None:
    compiled: list[list[list[bool]]] = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        inputs = [node.meta["example_value"] for node in module.graph.find_nodes(op="placeholder")]
        compiled.append(
            [
                [isinstance(size, torch.SymInt) for size in x.shape]
                for x in inputs
                if isinstance(x, Tensor)
            ]
        )
        return module.forward

    rows, table = [True, False], [False, False, False]
    added = [rows, rows]
    of_many, of_one = [True, False, False, False, False], [False] * 5
    # Five networks: torch compiles at most eight variants of one function.
    for _ in range(5):
        compiled.clear()
        plain = network()
        fast = copy.deepcopy(plain)
        cuda.fuse(fast, partial(cuda.FusedBlock, functions=cuda.Functions.compiled(backend)))
        for batch in (2, 1, 5):
            for ours, theirs in zip(
                step_from(fast, 0, batch), step_from(plain, 0, batch), strict=True
            ):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert compiled == [[of_many, table], added, [rows], [of_one, table]]


# The choice of a form


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The result of each form's attempt, and the times that they are measured to take."""
    given = SimpleNamespace(compiled=PLAIN, triton=OtherBlock, seconds=[3.0, 2.0])

    def attempted(name: str, _: cuda.BlockBenchmark) -> cuda.Form | str:
        found: cuda.Form | str | Exception = getattr(given, name)
        if isinstance(found, Exception):
            raise found
        return found

    def seconds(calls: list[Callable[[], Tensor]]) -> list[float]:
        assert [call().shape for call in calls] == [(2, 7, 64)] * 2
        if isinstance(given.seconds, Exception):
            raise given.seconds
        taken: list[float] = given.seconds
        return taken

    monkeypatch.setattr(cuda, "find_spec", lambda _: True)
    monkeypatch.setattr(cuda, "compiled_form", partial(attempted, "compiled"))
    monkeypatch.setattr(cuda, "triton_form", partial(attempted, "triton"))
    monkeypatch.setattr(cuda, "seconds", seconds)
    monkeypatch.setattr(cuda, "TIMED_BATCH", 2)
    return given


FAILURE = RuntimeError("no C compiler\nat all")
UNFIT = "there is no Triton for float32"


@pytest.mark.parametrize(
    ("given", "block", "said"),
    [
        ({}, OtherBlock, "fused by Triton (1.5 times as fast as the compiled form)"),
        (
            {"seconds": [2.0, 3.0]},
            cuda.FusedBlock,
            "fused by torch.compile (1.5 times as fast as Triton)",
        ),
        ({"triton": UNFIT}, cuda.FusedBlock, f"fused by torch.compile, because {UNFIT}"),
        (
            {"triton": FAILURE},
            cuda.FusedBlock,
            "fused by torch.compile, because Triton failed: no C compiler at all",
        ),
        (
            {"seconds": FAILURE},
            cuda.FusedBlock,
            "fused by torch.compile, because measuring failed: no C compiler at all",
        ),
        (
            {"compiled": AssertionError()},
            OtherBlock,
            "fused by Triton, because torch.compile failed: AssertionError",
        ),
        (
            {"compiled": FAILURE, "triton": UNFIT},
            Block,
            "plain torch, because torch.compile failed: no C compiler at all",
        ),
    ],
)
def test_the_fastest_form_that_works_is_used(
    forms: SimpleNamespace, given: dict[str, Any], block: type, said: str
) -> None:
    forms.__dict__.update(given)
    plain = network()
    fast = copy.deepcopy(plain)
    assert cuda.accelerate(fast) == said
    assert blocks_of(fast) == {block}
    assert_same_step(plain, fast, 1e-6)


def test_kernels_can_be_turned_off(forms: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda.SWITCH, "off")
    plain = network()
    assert forms.compiled is PLAIN
    assert cuda.accelerate(plain) == "plain torch, because SQE_GPU_KERNELS is off"
    assert blocks_of(plain) == {Block}


def test_triton_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda.SWITCH, "compiled")
    assert cuda.triton_form(cuda.BlockBenchmark(network())) == "SQE_GPU_KERNELS is compiled"


def test_blocks_stay_plain_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_spec", lambda _: None)
    plain = network()
    assert cuda.accelerate(plain) == "plain torch, because there is no triton"
    assert blocks_of(plain) == {Block}


@pytest.mark.parametrize("dtype", cpu.DTYPES)
def test_a_wrong_form_is_refused(dtype: torch.dtype) -> None:
    benchmark = cuda.BlockBenchmark(network(dtype).to(dtype))
    benchmark.check(PLAIN)

    def last_row_is_wrong(gate_up: Tensor) -> Tensor:
        gated = cuda.swiglu(gate_up)
        gated[-1] = gated[0]
        return gated

    for swiglu in (
        lambda gate_up: cuda.swiglu(gate_up) * 1.02,
        lambda gate_up: cuda.swiglu(gate_up) * torch.nan,
        last_row_is_wrong,
    ):
        wrong = partial(cuda.FusedBlock, functions=cuda.Functions(swiglu=swiglu))
        with pytest.raises(ArithmeticError, match=r"wrong by (nan|\d)"):
            benchmark.check(wrong)


def test_the_best_round_of_each_call_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, turns = [0.0], count()

    class Event:
        at = 0.0

        def record(self) -> None:
            self.at = clock[0]

        def synchronize(self) -> None:
            next(turns)

        def elapsed_time(self, end: "Event") -> float:
            return (end.at - self.at) * 1000

    def call(seconds: float) -> None:
        clock[0] += seconds * (1 if next(turns) > 9 else 7)

    stream = mock.Mock()
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(cuda, "cuda_capture", lambda _: lambda work: work)
    monkeypatch.setattr(cuda, "_event", Event)
    assert cuda.seconds([partial(call, 3), partial(call, 2)]) == pytest.approx([3, 2])
    stream.wait_stream.assert_called_once()
