"""hrm.kernels.int8: levels in int8, in plain torch."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.checkpoint import load_checkpoint
from hrm.data.conversion import AcceptedPair, Converter
from hrm.kernels.int8 import EXACT_INPUTS, Int8Linear, emulate, quantised
from hrm.model.batch import encode
from hrm.model.network import Level, Linear, rotary_table
from hrm.model.reference_loop import evaluate_batch
from schemas import HaltedBy
from tests.support.networks import config

DEMO = Path(__file__).parents[4] / "checkpoints" / "sqe-demo"
STEPS = 6
"""By then nearly all known examples have halted under `q`."""


@given(
    rows=st.integers(1, 5), size=st.integers(1, 40), scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e9])
)
def test_a_row_is_rounded_to_the_nearest_step(rows: int, size: int, scale: float) -> None:
    x = torch.randn(rows, size) * scale
    values, scales = quantised(x)
    assert values.dtype == torch.int8
    assert values.abs().amax(-1).eq(127).all()
    error = (values * scales.double() - x.double()).abs()
    assert (error <= 0.5001 * scales).all()


def test_rows_have_scales_of_their_own() -> None:
    values, scales = quantised(torch.tensor([[1.0, -2.0], [0.0, 0.0], [torch.nan, 1.0]]))
    assert values[:2].tolist() == [[64, -127], [0, 0]]
    assert scales[0].item() == pytest.approx(2 / 127)
    assert scales.isnan().flatten().tolist() == [False, False, True]


@pytest.mark.parametrize("inputs", [3, EXACT_INPUTS, EXACT_INPUTS + 1, 5000])
def test_products_of_integers_are_exact(inputs: int) -> None:
    linear = Linear(inputs, 4)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(100, 128, linear.weight.shape))
        linear.weight[:, 0] = 127
    x = torch.randint(100, 128, (6, inputs)).float()
    x[:, 0] = 127
    exact = (x.double() @ linear.weight.detach().double().T).float()
    assert torch.equal(Int8Linear(linear)(x), exact)


def test_inputs_and_outputs_are_rounded_to_their_dtypes() -> None:
    linear = Linear(32, 16)
    x = torch.randn(5, 32)
    coarse = Int8Linear(linear, inputs=torch.bfloat16, outputs=torch.bfloat16)(x)
    assert coarse.dtype == torch.bfloat16
    assert torch.equal(coarse, Int8Linear(linear)(x.bfloat16()).bfloat16())


@pytest.mark.parametrize("size", [1, 32, 64, 96, 100])
def test_groups_of_inputs_have_scales_of_their_own(size: int) -> None:
    linear = Linear(96, 8)
    x = torch.randn(5, 96) * torch.linspace(1e-3, 1, 96)
    grouped, (values, scales) = Int8Linear(linear, group=size)(x), quantised(linear.weight)
    parts = [quantised(part) for part in torch.split(x, size, dim=1)]
    rows = torch.cat([(each * scale).double() for each, scale in parts], dim=1)
    expected = rows @ (values * scales.detach()).double().T
    torch.testing.assert_close(grouped.double(), expected, rtol=1e-5, atol=1e-6)
    if size >= 96:
        assert torch.equal(grouped, Int8Linear(linear)(x))


@pytest.mark.parametrize("inner", [torch.float32, torch.bfloat16])
@given(
    heads=st.integers(1, 4),
    head_dim=st.sampled_from([16, 32, 64]),
    length=st.integers(1, 40),
    group=st.sampled_from([None, 64, 100]),
)
@settings(max_examples=20, deadline=None)
def test_a_level_in_int8_is_near_the_exact_one(
    inner: torch.dtype, heads: int, head_dim: int, length: int, group: int | None
) -> None:
    torch.manual_seed(heads)
    plain = Level(config(heads, head_dim), 2).requires_grad_(requires_grad=False)
    rounded = copy.deepcopy(plain)
    emulate(rounded, inner, group=group)
    z, injection = torch.randn(2, 3, length, heads * head_dim)
    rotary = rotary_table(length, head_dim, 1e4)
    output, exact = rounded(z, injection, rotary), plain(z, injection, rotary)
    assert output.dtype == torch.float32
    assert 0 < (output - exact).abs().mean() < 0.03


@pytest.mark.parametrize(
    ("inner", "group"), [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, 64)]
)
def test_the_demo_answers_the_same(inner: torch.dtype, group: int | None) -> None:
    checkpoint = load_checkpoint(DEMO)
    converter = Converter(checkpoint.conversion)
    lines = (DEMO / "messages.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [AcceptedPair.model_validate_json(line) for line in lines]
    examples = [converter.convert(pair.prompt, pair.completion, pair.puzzle_id) for pair in pairs]
    batch = encode(examples, checkpoint.config)
    plain, rounded = checkpoint.build(), checkpoint.build()
    emulate(rounded.H_level, inner, group=group)
    emulate(rounded.L_level, inner, group=group)
    ours, theirs = (
        evaluate_batch(network, batch, halting=HaltedBy.Q, max_steps=STEPS)
        for network in (rounded, plain)
    )
    given_tokens = batch.labels >= 0
    assert torch.equal(ours.predictions[given_tokens], theirs.predictions[given_tokens])
    assert torch.equal(ours.steps, theirs.steps)
