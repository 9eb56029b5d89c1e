"""An inspection counts every number in a checkpoint once, under the right component."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrm.checkpoint import Checkpoint, inspection, load_checkpoint, read_checkpoint, save_checkpoint
from hrm.checkpoint.config import tensor_shapes
from hrm.checkpoint.inspection import Component, component_of, inspect_checkpoint, tensor_statistics
from hrm.data.config import ConversionConfig, PuzzlePolicy, Task
from hrm.model.config import HRMConfig
from tests.support.checkpoints import (
    ACCEPTED,
    FIRST_RECORD,
    RECORD,
    SEVERAL,
    SHA256,
    TINY,
    state_of,
    store,
    write_config,
)


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    save_checkpoint(tmp_path / "tiny", state_of(TINY), TINY, SHA256, RECORD)
    return load_checkpoint(tmp_path / "tiny")


def with_tensors(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> Checkpoint:
    return replace(checkpoint, state={**checkpoint.state, **tensors})


# The whole checkpoint.


def test_a_v9_checkpoint_has_its_published_size(saved: Checkpoint) -> None:
    config = HRMConfig()
    # Each tensor is backed by a single number in memory.
    state = {key: torch.zeros(()).expand(shape) for key, shape in tensor_shapes(config).items()}
    inspected = inspect_checkpoint(replace(saved, config=config, state=state))
    assert inspected.parameters == 27_990_018
    assert inspected.puzzles == 95_996
    assert f"{inspected.memory_bytes / 2**20:.2f}" == "106.77"
    shares = {part.component: f"{part.share:.1%}" for part in inspected.components}
    assert shares[Component.PUZZLE_EMBEDDINGS] == "87.8%"


def test_components_add_up_and_are_in_the_papers_order(saved: Checkpoint) -> None:
    inspected = inspect_checkpoint(saved)
    parts = {part.component: part.parameters for part in inspected.components}
    block = 3 * 16 * 16 + 16 * 16 + 2 * 256 * 16 + 16 * 256
    assert list(parts.items()) == [
        (Component.PUZZLE_EMBEDDINGS, 5 * 16),
        (Component.TOKEN_EMBEDDINGS, 12 * 16),
        (Component.H_LEVEL, block),
        (Component.L_LEVEL, 2 * block),
        (Component.HEADS, 12 * 16 + 2 * 16 + 2),
        (Component.INITIAL_STATES, 32),
    ]
    assert sum(parts.values()) == inspected.parameters
    assert math.isclose(sum(part.share for part in inspected.components), 1)
    assert inspected.parameters == sum(tensor.numel() for tensor in saved.state.values())


def test_learned_positions_are_a_component() -> None:
    config = TINY.model_copy(update={"pos_encodings": "learned"})
    components = {component_of(key) for key in tensor_shapes(config)}
    assert components == set(Component)


def test_sizes_in_memory_in_storage_and_of_the_file_differ(tmp_path: Path) -> None:
    state = state_of(TINY)
    state["puzzle_emb.weights"] = state["puzzle_emb.weights"].bfloat16()
    folder = store(tmp_path / "m", state)
    write_config(folder, model={"num_heads": 2})
    inspected = inspect_checkpoint(read_checkpoint(folder))
    rest = inspected.parameters - 80
    assert inspected.dtypes == {"float32": rest, "bfloat16": 80}
    assert inspected.memory_bytes == 4 * inspected.parameters
    assert inspected.stored_bytes == 4 * rest + 2 * 80
    assert inspected.file_bytes == (folder / "model.safetensors").stat().st_size
    assert inspected.file_bytes > inspected.stored_bytes
    assert inspected.components[0].stored_bytes == 160


def test_the_configuration_names_the_source_of_each_value(tmp_path: Path) -> None:
    folder = store(tmp_path / "m", state_of(TINY))
    write_config(folder, model={"num_heads": 2}, conversion={"word_hash": "sha256"})
    inspected = inspect_checkpoint(read_checkpoint(folder))
    assert inspected.model.keys() == HRMConfig.model_fields.keys()
    assert inspected.conversion.keys() == {
        "version",
        "word_hash",
        "puzzle_policy",
        "puzzle_space",
    }
    named = {
        name: (field.value, field.source)
        for name, field in (inspected.model | inspected.conversion).items()
    }
    assert named["num_heads"] == (2, "config.json")
    assert named["hidden_size"] == (16, "tensor shapes")
    assert named["H_cycles"] == (2, "default")
    assert named["word_hash"] == ("sha256", "config.json")
    assert named["puzzle_space"] == (1000, "default")


def test_tasks_are_shown_with_the_prompts_that_were_trained(saved: Checkpoint) -> None:
    assert inspect_checkpoint(saved).tasks == ()
    tasks = (Task(name="plan", row=1000), Task(name="found-1", row=1001, template=(3, 4)))
    conversion = ConversionConfig(puzzle_policy=PuzzlePolicy.TASK, tasks=tasks)
    accepted = ACCEPTED.model_copy(update={"prompt_counts": {1000: 30}})
    record = RECORD.model_copy(update={"accepted": accepted})
    sources = dict.fromkeys((*saved.config_sources, "tasks"), "config.json")
    checkpoint = replace(saved, conversion=conversion, config_sources=sources, training=record)
    assert [tuple(each.model_dump().values()) for each in inspect_checkpoint(checkpoint).tasks] == [
        ("plan", 1000, False, 30),
        ("found-1", 1001, True, 1),
    ]
    unrecorded = inspect_checkpoint(replace(checkpoint, training=None)).tasks
    assert [each.prompts for each in unrecorded] == [None, None]
    assert "tasks" not in inspect_checkpoint(checkpoint).conversion


def test_digest_and_training_record_are_the_checkpoints(saved: Checkpoint) -> None:
    inspected = inspect_checkpoint(saved)
    assert inspected.digest == saved.digest
    assert inspected.training is not None
    assert inspected.training.pairs == 2
    assert inspected.training.target_token_counts == tuple(range(12))
    assert (inspected.training.format_version, inspected.training.prompts) == (2, 2)
    assert (inspected.training.several_answers, inspected.training.further_answers) == (1, 0)
    several = inspect_checkpoint(replace(saved, training=SEVERAL)).training
    assert several is not None
    assert (several.several_answers, several.further_answers) == (1, 1)
    first = inspect_checkpoint(replace(saved, training=FIRST_RECORD)).training
    assert first is not None
    assert (first.format_version, first.pairs, first.prompts) == (1, 2, None)
    assert inspect_checkpoint(replace(saved, training=None)).training is None


def test_a_network_without_puzzle_table_has_no_puzzles(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"puzzle_emb_ndim": 0})
    save_checkpoint(tmp_path / "m", state_of(config), config, SHA256, None)
    inspected = inspect_checkpoint(load_checkpoint(tmp_path / "m"))
    assert inspected.puzzles == 0
    assert Component.PUZZLE_EMBEDDINGS not in {part.component for part in inspected.components}


def test_nan_and_infinite_weights_are_counted_and_not_refused(tmp_path: Path) -> None:
    state = state_of(TINY)
    state["H_init"][:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    state["lm_head.weight"][:] = torch.nan
    folder = store(tmp_path / "broken", state)
    write_config(folder, model=TINY.model_dump(mode="json"))
    inspected = inspect_checkpoint(read_checkpoint(folder))
    assert (inspected.nan, inspected.infinite) == (1 + 12 * 16, 2)
    initial = inspected.tensors["H_init"]
    assert (initial.nan, initial.infinite) == (1, 2)
    assert initial.maximum == float(state["H_init"][3:].max())
    head = inspected.tensors["lm_head.weight"]
    assert head.nan == head.parameters == 12 * 16
    assert (head.mean_absolute, head.standard_deviation, head.minimum, head.maximum) == (None,) * 4


# A single tensor.


def test_statistics_of_a_tensor_match_hand_computed_values() -> None:
    tensor = torch.tensor([[0.0, -3.0], [1.0, 0.0]], dtype=torch.bfloat16)
    figures = tensor_statistics("lm_head.weight", tensor)
    assert figures.component is Component.HEADS
    assert (figures.shape, figures.dtype, figures.parameters) == ((2, 2), "bfloat16", 4)
    assert (figures.mean, figures.mean_absolute) == (-0.5, 1.0)
    assert figures.standard_deviation == 1.5
    assert (figures.minimum, figures.maximum, figures.sparsity) == (-3.0, 1.0, 0.5)
    assert (figures.nan, figures.infinite) == (0, 0)


def test_a_constant_tensor_has_no_spread_however_far_from_zero() -> None:
    figures = tensor_statistics("H_init", torch.full((1000,), 12345.678))
    assert figures.standard_deviation == pytest.approx(0, abs=1e-9)


@given(
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=30),
    st.integers(1, 30),
)
def test_statistics_do_not_depend_on_the_chunk_size(numbers: list[float], chunk: int) -> None:
    tensor = torch.tensor(numbers)
    whole = tensor_statistics("H_init", tensor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection, "CHUNK", chunk)
        cut = tensor_statistics("H_init", tensor)
    finite = [number for number in tensor.tolist() if math.isfinite(number)]
    scale = max(map(abs, finite), default=0.0)
    for name in ("mean", "mean_absolute", "standard_deviation"):
        expected, found = getattr(whole, name), getattr(cut, name)
        assert (found is None) == (expected is None) == (not finite)
        assert expected is None or math.isclose(found, expected, abs_tol=scale * 1e-9)
    assert (cut.minimum, cut.maximum) == (min(finite, default=None), max(finite, default=None))
    assert (cut.nan + cut.infinite, cut.parameters) == (len(numbers) - len(finite), len(numbers))
    assert cut.sparsity == finite.count(0.0) / len(numbers)
