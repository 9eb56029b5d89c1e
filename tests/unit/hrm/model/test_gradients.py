"""A training step has the gradients of its definition, checked with the reference's weights.

Only the last call of L and the last call of H carry gradients (the one-step gradient of the paper).
Here every call is written out, the earlier ones under `no_grad`, and autograd does the rest.
"""

import pytest
import torch
from torch import Tensor

from hrm.model.network import HRM, State
from hrm.training.losses import act_losses
from tests.support import reference as reference_data

TARGET = torch.linspace(0, 1, 9)
"""Targets for `q_continue`; any values will do."""


@pytest.fixture
def network() -> HRM:
    return reference_data.network()


def embedded(network: HRM, puzzle_rows: Tensor) -> Tensor:
    return network.embed(reference_data.batch().inputs, puzzle_rows)


def puzzle_rows(network: HRM) -> Tensor:
    rows = network.puzzle_embedding(reference_data.batch().puzzle_ids)
    assert rows is not None
    return rows.detach().requires_grad_()


def gradients(network: HRM, state: State, rows: Tensor) -> dict[str, Tensor]:
    """Gradients of the total loss by parameter name; those of the puzzle rows under `puzzle`."""
    losses = act_losses(
        network.token_logits(state.z_H),
        network.q_logits(state.z_H),
        reference_data.batch().labels,
        TARGET,
    )
    torch.autograd.backward(losses.total)
    found = {name: value.grad for name, value in network.named_parameters()} | {"puzzle": rows.grad}
    return {name: grad for name, grad in found.items() if grad is not None}


def step_written_out(network: HRM, x: Tensor, *, cut: bool = True) -> State:
    """One ACT step with every call on its own line; `cut`: the earlier ones carry no gradients."""
    L, H, rotary = network.L_level, network.H_level, network.rotary
    config = network.config
    assert (config.H_cycles, config.L_cycles) == (2, 2)
    z_H, z_L = network.initial_state(9)
    with torch.set_grad_enabled(not cut):
        z_L = L(z_L, z_H + x, rotary)
        z_L = L(z_L, z_H + x, rotary)
        z_H = H(z_H, z_L, rotary)
        z_L = L(z_L, z_H + x, rotary)
    z_L = L(z_L, z_H + x, rotary)
    return State(H(z_H, z_L, rotary), z_L)


def test_gradients_come_from_the_last_call_of_each_level(network: HRM) -> None:
    rows = puzzle_rows(network)
    x = embedded(network, rows)
    found = gradients(network, network.step(network.initial_state(9), x), rows)

    plain = reference_data.network()
    rows = puzzle_rows(plain)
    expected = gradients(plain, step_written_out(plain, embedded(plain, rows)), rows)

    assert found.keys() == expected.keys() == dict(network.named_parameters()).keys() | {"puzzle"}
    for name, value in expected.items():
        assert value.abs().sum() > 0, name
        torch.testing.assert_close(found[name], value, msg=name)


def test_gradients_through_all_calls_would_differ(network: HRM) -> None:
    rows = puzzle_rows(network)
    x = embedded(network, rows)
    found = gradients(network, network.step(network.initial_state(9), x), rows)

    whole = reference_data.network()
    rows = puzzle_rows(whole)
    through = gradients(whole, step_written_out(whole, embedded(whole, rows), cut=False), rows)
    name = "L_level.layers.0.mlp.down_proj.weight"
    assert not torch.allclose(found[name], through[name], rtol=0.1)
    # The heads come after all calls.
    torch.testing.assert_close(found["lm_head.weight"], through["lm_head.weight"])
