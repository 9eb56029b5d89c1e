"""A checkpoint's configuration, with the source of each field.

Knows the two configuration files that may lie beside the weights, and the tensors and shapes that a
configuration implies; nothing of how tensors are stored or used.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from hrm.checkpoint.names import CheckpointError
from hrm.data.config import ConversionConfig
from hrm.data.vocabulary import vocabulary_of
from hrm.model.config import HRMConfig
from schemas import first_problem

CONFIG = "config.json"
"""This project's configuration file."""

REFERENCE_CONFIG = "all_config.yaml"
"""The reference's configuration file: all settings of its training run, the network under
`arch`."""

SHAPES = "tensor shapes"
DEFAULT = "default"

_NOT_THE_NETWORK = {"name", "loss", "forward_dtype"}
"""Fields under `arch` that affect neither the network's sizes nor its evaluation in float32."""

_EMBEDDING = "embed_tokens.embedding_weight"
_POSITIONS = "embed_pos.embedding_weight"
_PUZZLES = "puzzle_emb.weights"
_INNER = "H_level.layers.0.mlp.down_proj.weight"

_MAX_LISTED = 3
"""Tensors named in one error line: the first few show what is wrong with all of them."""


class ConfigFile(BaseModel):
    """The content of `config.json`. Sizes missing from `model` are taken from the tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    model: dict[str, Any]
    conversion: ConversionConfig = ConversionConfig()


@dataclass(frozen=True)
class Configuration:
    """Configuration of network and conversion; `sources` says where each field comes from."""

    model: HRMConfig
    conversion: ConversionConfig
    sources: Mapping[str, str]


def config_json(model: HRMConfig, conversion: ConversionConfig) -> str:
    """Text of `config.json`: every field, always in the same order and format."""
    file = ConfigFile(model=model.model_dump(mode="json"), conversion=conversion)
    return json.dumps(file.model_dump(mode="json"), indent=2) + "\n"


def read_configuration(weights: Path, state: Mapping[str, Tensor]) -> Configuration:
    """Work out the configuration of the network with the tensors `state`, read from `weights`.

    Fields come from `config.json` or the reference's `all_config.yaml` beside the weights. Missing
    fields are inferred from the tensors' shapes, and those that shapes cannot tell have the v9
    defaults.

    Raises:
        CheckpointError: A configuration file is invalid, or the tensors do not fit the result.
    """
    source, given, conversion = _read_sidecar(weights.parent)
    inferred = infer_from_shapes(weights, state)
    sources = dict.fromkeys((*HRMConfig.model_fields, *conversion.in_force), DEFAULT)
    sources |= dict.fromkeys(inferred, SHAPES)
    sources |= dict.fromkeys(given.keys() | conversion.model_fields_set, source)
    try:
        model = HRMConfig.model_validate(inferred | given)
    except ValidationError as error:
        where = weights.parent / source if given else weights
        fix = "correct it" if given else f"put a {CONFIG} with the right sizes beside it"
        raise CheckpointError(f"{where}: {first_problem(error)}: {fix}") from None
    tokens = vocabulary_of(conversion).size
    if model.vocab_size != tokens:
        raise CheckpointError(
            f"{weights}: {_EMBEDDING} is for {model.vocab_size} tokens, but conversion "
            f"{conversion.version} gives {tokens}: put the {CONFIG} of this network beside it"
        )
    check_tensors(state, model, weights, source if given else "the rest of it")
    return Configuration(model, conversion, sources)


def check_tensors(
    state: Mapping[str, Tensor], config: HRMConfig, weights: Path, source: str
) -> None:
    """Raise `CheckpointError` unless `state` has exactly the tensors that `config` implies.

    `weights` and `source`, the source of the configuration, are named in the error.
    """
    expected = tensor_shapes(config)
    fix = "give weights and configuration of one network"
    if missing := expected.keys() - state.keys():
        raise CheckpointError(
            f"{weights}: lacks {_listed(missing)}, which {source} calls for: {fix}"
        )
    if surplus := state.keys() - expected.keys():
        raise CheckpointError(
            f"{weights}: has {_listed(surplus)}, which {source} does not call for: {fix}"
        )
    for key, shape in expected.items():
        if state[key].shape != shape:
            raise CheckpointError(
                f"{weights}: {key} has shape {tuple(state[key].shape)}, but {source} calls for "
                f"{shape}: {fix}"
            )


def check_finite(state: Mapping[str, Tensor], weights: Path) -> None:
    """Raise `CheckpointError`, naming `weights`, unless all numbers in `state` are finite."""
    for key, tensor in state.items():
        # NaN propagates to both extremes, so this takes one pass over the numbers and no copy.
        if not all(extreme.isfinite() for extreme in tensor.aminmax()):
            raise CheckpointError(
                f"{weights}: {key} has NaN or infinite numbers: take an earlier checkpoint"
            )


def tensor_shapes(config: HRMConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the state dict of a network of `config`, by the checkpoint format's keys.

    They are written out because building a network to ask it costs memory and time, and a
    configuration with a typo can cost all there is of both.
    """
    size, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "H_init": (size,),
        "L_init": (size,),
        _EMBEDDING: (config.vocab_size, size),
        "lm_head.weight": (config.vocab_size, size),
        "q_head.weight": (2, size),
        "q_head.bias": (2,),
    }
    if config.puzzle_emb_ndim:
        shapes[_PUZZLES] = (config.num_puzzle_identifiers, config.puzzle_emb_ndim)
    if config.pos_encodings == "learned":
        shapes[_POSITIONS] = (config.puzzle_emb_len + config.seq_len, size)
    for level, layers in (("H", config.H_layers), ("L", config.L_layers)):
        for layer in range(layers):
            block = f"{level}_level.layers.{layer}"
            shapes[f"{block}.self_attn.qkv_proj.weight"] = (3 * size, size)
            shapes[f"{block}.self_attn.o_proj.weight"] = (size, size)
            shapes[f"{block}.mlp.gate_up_proj.weight"] = (2 * inner, size)
            shapes[f"{block}.mlp.down_proj.weight"] = (size, inner)
    return shapes


class _Sidecar(NamedTuple):
    source: str
    model: dict[str, Any]
    conversion: ConversionConfig


def _read_sidecar(folder: Path) -> _Sidecar:
    own, reference = folder / CONFIG, folder / REFERENCE_CONFIG
    try:
        if own.is_file():
            file = ConfigFile.model_validate_json(own.read_bytes())
            return _Sidecar(CONFIG, file.model, file.conversion)
        if reference.is_file():
            arch = yaml.safe_load(reference.read_bytes())["arch"]
            fields = {key: arch[key] for key in arch if key not in _NOT_THE_NETWORK}
            return _Sidecar(REFERENCE_CONFIG, fields, ConversionConfig())
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise CheckpointError(f"{own}: {first_problem(error)}: correct it") from None
    except (yaml.YAMLError, RecursionError, LookupError, TypeError, ValueError):
        raise CheckpointError(
            f"{reference}: not YAML with a mapping under arch: restore the file of the training run"
        ) from None
    return _Sidecar(DEFAULT, {}, ConversionConfig())


def infer_from_shapes(weights: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the fields of `HRMConfig` that follow from the tensors' shapes.

    `weights` is named in the `CheckpointError` that is raised if a tensor needed for this is
    missing or not a matrix.
    """
    for key in (_EMBEDDING, _INNER, _PUZZLES, _POSITIONS):
        if key not in state and key in {_EMBEDDING, _INNER}:
            raise CheckpointError(f"{weights}: lacks {key}: give the network's own state dict")
        if key in state and state[key].dim() != 2:  # noqa: PLR2004 - rows and columns
            raise CheckpointError(
                f"{weights}: {key} has shape {tuple(state[key].shape)}, but it is a matrix: "
                "give the network's own state dict"
            )
    vocab_size, hidden_size = state[_EMBEDDING].shape
    inferred: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "expansion": _expansion(hidden_size, state[_INNER].shape[1]),
        "H_layers": _count_layers("H", state),
        "L_layers": _count_layers("L", state),
        "pos_encodings": "learned" if _POSITIONS in state else "rope",
        "puzzle_emb_ndim": 0,
    }
    if _PUZZLES in state:
        inferred["num_puzzle_identifiers"], inferred["puzzle_emb_ndim"] = state[_PUZZLES].shape
    if _POSITIONS in state:
        leading = -(-inferred["puzzle_emb_ndim"] // hidden_size)
        inferred["seq_len"] = state[_POSITIONS].shape[0] - leading
    return inferred


def _expansion(hidden_size: int, intermediate_size: int) -> float:
    """An expansion that gives this inner size; the default if it does.

    Several do, because the inner size is rounded up.
    """
    default = HRMConfig.model_construct(hidden_size=hidden_size)
    if default.intermediate_size == intermediate_size:
        return default.expansion
    return intermediate_size * 1.5 / hidden_size


def _count_layers(level: str, state: Mapping[str, Tensor]) -> int:
    found = (re.match(rf"{level}_level\.layers\.(\d+)\.", key) for key in state)
    return len({match[1] for match in found if match})


def _listed(keys: Collection[str]) -> str:
    names = sorted(keys)
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
