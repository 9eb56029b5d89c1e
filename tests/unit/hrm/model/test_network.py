"""The network computes the reference's numbers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hrm.checkpoint import load_checkpoint
from hrm.model.config import HRMConfig
from hrm.model.network import HRM, State
from tests.support import reference as reference_data
from tests.support.networks import tiny_network

REFERENCE = Path(__file__).parents[3] / "fixtures" / "hrm_reference"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((REFERENCE / "reference.json").read_text())
    return content


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(REFERENCE / "reference_outputs.safetensors")


@pytest.fixture(scope="module")
def network(reference: dict[str, Any]) -> HRM:
    network = HRM(HRMConfig(**reference["config"]))
    network.load_state_dict(load_checkpoint(REFERENCE / "reference_checkpoint.pt").state)
    return network.eval()


@torch.inference_mode()
def steps(
    network: HRM, inputs: Tensor, puzzle_ids: Tensor, count: int
) -> Iterator[tuple[Tensor, Tensor]]:
    x = network.embed(inputs, network.puzzle_embedding(puzzle_ids))
    state = network.initial_state(len(inputs))
    for _ in range(count):
        state = network.step(state, x)
        yield network.token_logits(state.z_H), network.q_logits(state.z_H)


def test_logits_of_the_first_step_are_the_references_on_any_processor(
    network: HRM, recorded: dict[str, Tensor]
) -> None:
    logits, _ = next(steps(network, recorded["inputs"], recorded["puzzle_identifiers"], 1))
    assert torch.equal(logits.argmax(-1), recorded["logits"][0].argmax(-1))
    difference = (logits - recorded["logits"][0]).abs().max().item()
    assert difference <= reference_data.FIRST_STEP_TOLERANCE


@reference_data.same_rounding
def test_logits_are_the_references_at_every_step(network: HRM, recorded: dict[str, Tensor]) -> None:
    count = len(recorded["logits"])
    assert count == 16
    ours = steps(network, recorded["inputs"], recorded["puzzle_identifiers"], count)
    for step, (logits, q_logits) in enumerate(ours):
        q_halt, q_continue = q_logits.unbind(-1)
        assert logits.shape == (9, 24, 12)
        for name, ours_at_step in (
            ("logits", logits),
            ("q_halt_logits", q_halt),
            ("q_continue_logits", q_continue),
        ):
            difference = (ours_at_step - recorded[name][step]).abs().max().item()
            assert difference <= TOLERANCE, f"{name} at step {step}"


@reference_data.same_rounding
def test_solves_what_the_reference_solves(
    network: HRM, recorded: dict[str, Tensor], reference: dict[str, Any]
) -> None:
    *_, (logits, q_logits) = steps(network, recorded["inputs"], recorded["puzzle_identifiers"], 16)
    labels = recorded["labels"]
    counted = labels != -100
    right = (logits.argmax(-1) == labels) & counted
    solved = right.sum(-1) == counted.sum(-1)
    wanted = reference["metrics_at_last_step"]
    assert solved.sum() == wanted["exact_accuracy"]
    assert ((q_logits[:, 0] >= 0) == solved).sum() == wanted["q_halt_accuracy"]
    accuracy = (right.sum(-1) / counted.sum(-1).clamp(min=1)).sum().item()
    assert accuracy == pytest.approx(wanted["accuracy"])


def test_v9_has_the_published_number_of_parameters() -> None:
    state = HRM(HRMConfig()).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 27_990_018
    assert state["puzzle_emb.weights"].numel() / 27_990_018 == pytest.approx(0.878, abs=5e-4)
    assert sum(tensor.nbytes for tensor in state.values()) / 2**20 == pytest.approx(
        106.77, abs=0.01
    )


def test_a_new_network_almost_never_halts_and_knows_no_puzzle() -> None:
    network = tiny_network()
    ((_, q_logits),) = steps(network, torch.zeros(2, 8, dtype=torch.int64), torch.tensor([0, 2]), 1)
    assert q_logits.eq(-5).all()
    assert network.state_dict()["puzzle_emb.weights"].eq(0).all()


@pytest.mark.parametrize(
    ("fields", "leading"),
    [
        ({"puzzle_emb_ndim": 0}, 0),
        ({"puzzle_emb_ndim": 16}, 1),
        ({"puzzle_emb_ndim": 17}, 2),
        ({"pos_encodings": "learned", "puzzle_emb_ndim": 33}, 3),
    ],
)
def test_puzzle_positions_come_first_and_give_no_token_logits(
    fields: dict[str, Any], leading: int
) -> None:
    network = tiny_network(**fields)
    assert network.initial_state(2).z_H.shape == (2, leading + 8, 16)
    inputs = torch.zeros(2, 8, dtype=torch.int64)
    ((logits, q_logits),) = steps(network, inputs, torch.tensor([0, 1]), 1)
    assert logits.shape == (2, 8, 12)
    assert q_logits.shape == (2, 2)


def test_the_puzzle_embedding_is_padded_with_zeros_over_its_positions() -> None:
    network = tiny_network(puzzle_emb_ndim=20)
    row = torch.arange(1.0, 21.0)
    x = network.embed(torch.zeros(1, 8, dtype=torch.int64), row[None])
    assert x[0, :2].flatten().tolist() == [4 * n for n in range(1, 21)] + [0] * 12


def test_learned_positions_replace_rotary_ones() -> None:
    network = tiny_network(pos_encodings="learned")
    assert network.rotary is None
    inputs = torch.tensor([[0, 5, 5, 11, 0, 0, 0, 0]])
    tokens = network.embed_tokens.embedding_weight[inputs[0]]
    positions = network.embed_pos.embedding_weight[1:]
    x = network.embed(inputs, network.puzzle_embedding(torch.tensor([0])))
    torch.testing.assert_close(x[0, 1:], (tokens + positions) / 2**0.5 * 4)


def test_order_matters_with_rotary_positions() -> None:
    network = tiny_network()
    inputs = torch.tensor([[0, 1, 2, 11, 0, 0, 0, 0], [0, 2, 1, 11, 0, 0, 0, 0]])
    ((logits, _),) = steps(network, inputs, torch.tensor([0, 0]), 1)
    # The last position holds the same token in both inputs, and sees the same tokens
    # in a different order.
    assert not torch.allclose(logits[0, -1], logits[1, -1])


def test_only_the_last_call_of_each_level_carries_gradients() -> None:
    network = tiny_network(H_cycles=2, L_cycles=2)
    inputs = torch.zeros(1, 8, dtype=torch.int64)
    x = network.embed(inputs, network.puzzle_embedding(torch.tensor([0])))
    z_H, z_L = (z.clone().requires_grad_() for z in network.initial_state(1))
    calls: list[bool] = []
    for level in (network.H_level, network.L_level):
        level.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    last = network.step(State(z_H, z_L), x)
    torch.autograd.backward(last.z_H.sum())
    assert calls == [False] * 4 + [True, True]
    assert z_H.grad is None
    assert z_L.grad is None
    assert all(
        parameter.grad is not None
        for level in (network.H_level, network.L_level)
        for parameter in level.parameters()
    )


def test_half_precision_activations_stay_near_float32(network: HRM) -> None:
    half = HRM(network.config, torch.bfloat16)
    half.load_state_dict(network.state_dict())
    inputs, puzzles = torch.zeros(2, 24, dtype=torch.int64), torch.tensor([1, 2])
    ((wanted, _),) = steps(network, inputs, puzzles, 1)
    ((logits, q_logits),) = steps(half, inputs, puzzles, 1)
    assert logits.dtype == torch.bfloat16
    assert q_logits.dtype == torch.float32
    assert (logits - wanted).abs().max() < 0.1 * wanted.abs().max()
