"""Weights are compared tensor by tensor, and have converged by the stated rule."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hrm.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hrm.evaluation import comparison
from hrm.evaluation.comparison import CONVERGED_BELOW, StepChange, compare_checkpoints
from hrm.model.config import HRMConfig
from tests.support.checkpoints import RECORD, SHA256, TINY, state_of

Save = Callable[..., Checkpoint]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def saved(
        name: str, state: Mapping[str, Tensor] | None = None, config: HRMConfig = TINY
    ) -> Checkpoint:
        save_checkpoint(tmp_path / name, state or state_of(config), config, SHA256, RECORD)
        return load_checkpoint(tmp_path / name)

    return saved


def step(*checkpoints: Checkpoint) -> StepChange:
    (only,) = compare_checkpoints(checkpoints).steps
    return only


def test_each_checkpoint_is_compared_with_the_next(save: Save) -> None:
    compared = compare_checkpoints([save("a"), save("b"), save("c")])
    assert [(change.earlier, change.later) for change in compared.steps] == [("a", "b"), ("b", "c")]
    assert list(compared.checkpoints) == ["a", "b", "c"]
    assert compared.converged_below == CONVERGED_BELOW


def test_equal_weights_have_not_changed_and_converged(save: Save) -> None:
    change = step(save("a"), save("b"))
    assert (change.magnitude_percent, change.spread_percent, change.moved) == (0, 0, 0)
    assert change.converged is True
    assert {tensor.moved for tensor in change.tensors.values()} == {0.0}


def test_doubled_weights_grew_by_100_percent(save: Save) -> None:
    state = state_of(TINY)
    change = step(save("a", state), save("b", {key: 2 * value for key, value in state.items()}))
    assert change.magnitude_percent == pytest.approx(100)
    assert change.spread_percent == pytest.approx(100)
    for tensor in change.tensors.values():
        assert tensor.magnitude_percent == pytest.approx(100)
        assert tensor.spread_percent == pytest.approx(100)
        assert tensor.moved == pytest.approx(0.5)
    assert change.converged is False


def test_a_turned_sign_moves_a_tensor_without_changing_its_size(save: Save) -> None:
    state = state_of(TINY)
    change = step(save("a", state), save("b", {**state, "H_init": -state["H_init"]}))
    assert next(iter(change.tensors)) == "H_init"
    turned = change.tensors["H_init"]
    assert turned.magnitude_percent == 0
    assert turned.moved == pytest.approx(2)
    assert change.moved == turned.moved
    assert change.converged is False


def test_magnitude_and_spread_of_all_weights_are_those_of_all_numbers(save: Save) -> None:
    before = state_of(TINY)
    after = {key: value + 0.5 * torch.rand_like(value) for key, value in before.items()}
    change = step(save("a", before), save("b", after))
    flat = [torch.cat([t.double().reshape(-1) for t in s.values()]) for s in (before, after)]
    magnitudes = [float(numbers.abs().mean()) for numbers in flat]
    spreads = [float(numbers.std(correction=0)) for numbers in flat]
    assert change.magnitude_percent == pytest.approx(100 * (magnitudes[1] / magnitudes[0] - 1))
    assert change.spread_percent == pytest.approx(100 * (spreads[1] / spreads[0] - 1))


def test_a_tensor_that_was_zero_has_no_percentage(save: Save) -> None:
    state = state_of(TINY)
    zeros = {**state, "q_head.bias": torch.zeros(2)}
    grown = step(save("a", zeros), save("b", state)).tensors["q_head.bias"]
    assert (grown.magnitude_percent, grown.spread_percent, grown.moved) == (None, None, 1.0)
    still = step(save("c", zeros), save("d", zeros)).tensors["q_head.bias"]
    assert (still.magnitude_percent, still.spread_percent, still.moved) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("factor", "converged"), [(0.9, True), (1.1, False)])
def test_one_tensor_beyond_the_rule_is_enough_not_to_have_converged(
    save: Save, factor: float, *, converged: bool
) -> None:
    state = state_of(TINY)
    moved = {**state, "q_head.bias": state["q_head.bias"] * (1 - factor * CONVERGED_BELOW)}
    change = step(save("a", state), save("b", moved))
    assert change.moved == pytest.approx(factor * CONVERGED_BELOW, rel=1e-4)
    assert change.converged is converged


def test_the_distance_does_not_depend_on_how_tensors_are_cut(
    save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = state_of(TINY)
    first, second = save("a", state), save("b", {key: value + 1 for key, value in state.items()})
    whole = step(first, second).tensors["lm_head.weight"].moved
    monkeypatch.setattr(comparison, "CHUNK", 7)
    assert step(first, second).tensors["lm_head.weight"].moved == pytest.approx(whole, rel=1e-12)


def test_an_enlarged_puzzle_table_is_shown_first_and_leaves_convergence_open(save: Save) -> None:
    larger = TINY.model_copy(update={"num_puzzle_identifiers": 9})
    change = step(save("a"), save("b", config=larger))
    assert next(iter(change.tensors)) == "puzzle_emb.weights"
    table = change.tensors["puzzle_emb.weights"]
    assert table.moved is None
    assert table.magnitude_percent is not None
    assert change.converged is None


def test_tensors_of_only_one_network_are_named(save: Save) -> None:
    learned = TINY.model_copy(update={"pos_encodings": "learned", "puzzle_emb_ndim": 0})
    change = step(save("a"), save("b", config=learned))
    assert change.only_earlier == ("puzzle_emb.weights",)
    assert change.only_later == ("embed_pos.embedding_weight",)
    assert change.converged is None


def test_without_measurements_nothing_is_recommended(save: Save) -> None:
    (recommendation,) = compare_checkpoints([save("a"), save("b")]).recommendations
    assert recommendation.recommended is None
    assert recommendation.candidates == ()
    assert recommendation.reason.startswith("no recommendation: weights alone do not tell")
