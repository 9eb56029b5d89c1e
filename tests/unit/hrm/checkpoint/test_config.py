"""A checkpoint's configuration: its sources, and the tensors that fit it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hrm.checkpoint import load_checkpoint
from hrm.checkpoint.config import tensor_shapes
from hrm.data.config import ConversionConfig, WordHash
from hrm.model.config import HRMConfig
from tests.support.checkpoints import TINY, refusal, state_of, store, write_arch, write_config

# The configuration and its sources.


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pos_encodings": "learned"},
        {"puzzle_emb_ndim": 0},
        {"puzzle_emb_ndim": 40, "pos_encodings": "learned"},
        {"H_layers": 3, "L_layers": 1, "hidden_size": 32},
        {"expansion": 40.0},
    ],
)
def test_tensor_shapes_match_the_network_and_give_its_configuration(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    config = TINY.model_copy(update=fields)
    state = state_of(config)
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert tensor_shapes(config) == shapes
    loaded = load_checkpoint(store(tmp_path / "m", state))
    assert tensor_shapes(loaded.config) == shapes


def test_without_a_file_shapes_come_first_and_v9_defaults_fill_in(tmp_path: Path) -> None:
    loaded = load_checkpoint(store(tmp_path / "m", state_of(TINY)))
    v9 = HRMConfig()
    not_told = ("seq_len", "num_heads", "H_cycles", "L_cycles", "halt_max_steps")
    assert loaded.config == TINY.model_copy(update={name: getattr(v9, name) for name in not_told})
    assert {loaded.config_sources[name] for name in not_told} == {"default"}
    told = {name for name, source in loaded.config_sources.items() if source == "tensor shapes"}
    assert told == {
        "vocab_size",
        "hidden_size",
        "expansion",
        "H_layers",
        "L_layers",
        "pos_encodings",
        "num_puzzle_identifiers",
        "puzzle_emb_ndim",
    }
    assert loaded.conversion == ConversionConfig()
    assert loaded.config_sources["word_hash"] == "default"


def test_learned_positions_give_the_sequence_length(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"pos_encodings": "learned", "puzzle_emb_ndim": 17})
    loaded = load_checkpoint(store(tmp_path / "m", state_of(config)))
    assert loaded.config.seq_len == 7
    assert loaded.config_sources["seq_len"] == "tensor shapes"


def test_the_references_configuration_file_is_read(tmp_path: Path) -> None:
    folder = store(tmp_path / "run", state_of(TINY), "step_30.safetensors")
    write_arch(folder)
    loaded = load_checkpoint(folder / "step_30.safetensors")
    assert loaded.name == "step_30"
    assert (loaded.config.num_heads, loaded.config.H_cycles, loaded.config.halt_max_steps) == (
        2,
        3,
        8,
    )
    assert loaded.config_sources["num_heads"] == "all_config.yaml"
    assert loaded.config_sources["vocab_size"] == "tensor shapes"
    assert loaded.config_sources["seq_len"] == "default"


def test_our_configuration_file_takes_precedence_over_the_references(tmp_path: Path) -> None:
    folder = store(tmp_path / "run", state_of(TINY))
    write_arch(folder)
    write_config(folder, model={"num_heads": 4}, conversion={"word_hash": "sha256"})
    loaded = load_checkpoint(folder)
    assert loaded.config.num_heads == 4
    assert loaded.config_sources["num_heads"] == "config.json"
    assert loaded.conversion.word_hash == WordHash.SHA256
    assert loaded.config_sources["word_hash"] == "config.json"
    assert loaded.config_sources["puzzle_space"] == "default"
    assert "all_config.yaml" not in loaded.config_sources.values()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"num_head": 2}}, r"unknown field 'num_head': correct it"),
        ({"model": {"num_heads": "many"}}, r"num_heads: .*integer.*: correct it"),
        ({"model": {"num_heads": 3}}, r"hidden_size 16 does not give 3 .* heads: correct it"),
        ({"model": {}, "converter": {}}, r"unknown field 'converter': correct it"),
        ({"model": {}, "conversion": {"word_hash": "md4"}}, r"conversion\.word_hash: .*sha256"),
        ({"model": {}, "format_version": 2}, r"format_version: Input should be 1: correct it"),
        ({}, r"model: Field required: correct it"),
        ({"model": {"seq_len": 1}}, r"seq_len: .*: correct it"),
    ],
)
def test_an_invalid_configuration_file_is_refused_by_field(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    folder = store(tmp_path / "m", state_of(TINY))
    write_config(folder, **content)
    refused = refusal(folder)
    assert refused.startswith(f"{folder / 'config.json'}: ")
    assert re.search(message, refused)


def test_a_configuration_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    folder = store(tmp_path / "m", state_of(TINY))
    (folder / "config.json").write_text("{")
    assert re.search(r"config\.json: Invalid JSON: .*: correct it", refusal(folder))


@pytest.mark.parametrize(
    "text", ["", "arch", "arch: [1]", "data_path: x", "{", "!!python/object:os.x {}", "\x00"]
)
def test_a_reference_configuration_without_a_network_is_refused(tmp_path: Path, text: str) -> None:
    folder = store(tmp_path / "m", state_of(TINY))
    (folder / "all_config.yaml").write_text(text)
    assert re.search(
        r"all_config\.yaml: not YAML with a mapping under arch: restore", refusal(folder)
    )


def test_a_reference_configuration_of_another_network_is_refused(tmp_path: Path) -> None:
    folder = store(tmp_path / "m", state_of(TINY))
    write_arch(folder, mlp_t=True)
    assert re.search(r"all_config\.yaml: unknown field 'mlp_t': correct it", refusal(folder))


def test_sizes_that_only_a_file_can_fix_are_refused_with_that_advice(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"hidden_size": 12, "num_heads": 6})
    refused = refusal(store(tmp_path / "m", state_of(config)))
    assert re.search(r"hidden_size 12 .* 8 .* heads: put a config\.json .* beside it", refused)


# Tensors that do not fit.


def broken(**changes: Tensor | None) -> dict[str, Tensor]:
    state = state_of(TINY)
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (broken(q_head__bias=None), r"lacks q_head\.bias, which the rest of it calls"),
        (
            broken(embed_tokens__embedding_weight=None),
            r"lacks embed_tokens\.embedding_weight: give the network's own state dict",
        ),
        (broken(extra__weight=torch.ones(2)), r"has extra\.weight, which .* call"),
        (
            broken(lm_head__weight=torch.ones(12, 8)),
            r"lm_head\.weight has shape \(12, 8\), but the rest of it calls for \(12, 16\): give",
        ),
        (
            broken(embed_tokens__embedding_weight=torch.ones(12)),
            r"embed_tokens\.embedding_weight has shape \(12,\), but it is a matrix",
        ),
        (
            broken(embed_tokens__embedding_weight=torch.ones(13, 16)),
            r"embed_tokens\.embedding_weight is for 13 tokens, but conversion 1 gives 12: put",
        ),
        (
            broken(H_init=torch.tensor([0.0] * 15 + [torch.nan])),
            r"H_init has NaN or infinite numbers: take an earlier checkpoint",
        ),
        (
            broken(puzzle_emb__weights=torch.full((5, 16), -torch.inf).bfloat16()),
            r"puzzle_emb\.weights has NaN or infinite numbers",
        ),
        (broken(L_init=torch.ones(16, dtype=torch.int64)), r"L_init' has no .* \(torch\.int64\)"),
        (
            broken(H_init=torch.ones(0)),
            r"H_init' of shape \(0,\) is not stored in full",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, state: dict[str, Tensor], message: str
) -> None:
    folder = store(tmp_path / "m", state)
    refused = refusal(folder)
    assert refused.startswith(f"{folder / 'model.safetensors'}: ")
    assert re.search(message, refused)


def test_a_long_list_of_tensors_is_cut_after_the_first_few(tmp_path: Path) -> None:
    state = {key: value for key, value in state_of(TINY).items() if "self_attn" not in key}
    refused = refusal(store(tmp_path / "m", state))
    assert re.search(
        r"lacks H_level\.layers\.0\.self_attn\.o_proj\.weight, \S+, \S+ and 3 more, which", refused
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 32}, r"has shape \(16,\), but config\.json calls for \(32,\)"),
        ({"H_layers": 2}, r"lacks H_level\.layers\.1\.mlp\.down_proj\.weight, .* config\.json"),
        ({"L_layers": 1}, r"has L_level\.layers\.1\.mlp\.down_proj\.weight, .* config\.json"),
        ({"num_puzzle_identifiers": 6}, r"puzzle_emb\.weights has shape \(5, 16\), .* \(6, 16\)"),
        ({"puzzle_emb_ndim": 0}, r"has puzzle_emb\.weights, which config\.json does not call for"),
        ({"expansion": 30}, r"gate_up_proj\.weight has shape \(512, 16\), .* config\.json"),
        ({"pos_encodings": "learned"}, r"lacks embed_pos\.embedding_weight, which config\.json"),
    ],
)
def test_a_configuration_file_that_contradicts_the_tensors_is_refused(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    folder = store(tmp_path / "m", state_of(TINY))
    write_config(folder, model={"num_heads": 2, **fields})
    assert re.search(message, refusal(folder))


def test_a_reference_configuration_that_contradicts_the_tensors_is_refused(tmp_path: Path) -> None:
    folder = store(tmp_path / "m", state_of(TINY))
    write_arch(folder, hidden_size=32)
    assert re.search(
        r"has shape \(16,\), but all_config\.yaml calls for \(32,\): give weights and config",
        refusal(folder),
    )
