"""Tiny checkpoints with all parts of large ones."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from hrm.checkpoint import (
    CheckpointError,
    TrainingRecord,
    load_checkpoint,
    pair_hash,
    save_checkpoint,
)
from hrm.checkpoint.record import Accepted, target_hash
from hrm.data.config import ConversionConfig, PuzzlePolicy, WordHash
from hrm.data.texts import AcceptedTexts, TextHashes
from hrm.model.config import HRMConfig
from hrm.model.network import HRM
from tests.support.networks import tiny

TINY = tiny(seq_len=7, L_layers=2, H_cycles=3)
SHA256 = ConversionConfig(
    word_hash=WordHash.SHA256, puzzle_policy=PuzzlePolicy.LINE_INDEX, puzzle_space=5
)
ACCEPTED = Accepted(
    target_lengths={pair_hash(3, [0, 4, 11]): (3, 4), pair_hash(4, [0, 11]): (4,)},
    puzzles=frozenset({3, 4}),
    texts=AcceptedTexts.of(
        [
            TextHashes.of("security", "agent test"),
            TextHashes.of("security", "agent"),
            TextHashes.of(" ", "agent test"),
        ]
    ),
)
RECORD = TrainingRecord(
    pair_hashes=frozenset(ACCEPTED.target_lengths),
    target_token_counts=tuple(range(12)),
    accepted=ACCEPTED,
)
"""The record of three pairs: "security" (puzzle 3) with two answers, and white space (puzzle 4)."""

FIRST_RECORD = RECORD.model_copy(update={"format_version": 1, "accepted": None})
"""The same, as version 1 knew it."""

ANSWERS = {
    pair_hash(3, [0, 4, 11]): {target_hash([0, 2, 1, 11]): 3, target_hash([0, 2, 11]): 2},
}
SEVERAL = RECORD.model_copy(update={"accepted": ACCEPTED.model_copy(update={"answers": ANSWERS})})
"""The same, with both answers to "security" in puzzle rows: the second in row 2."""


def state_of(config: HRMConfig) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = HRM(config).state_dict()
    return {key: torch.randn_like(tensor) for key, tensor in state.items()}


def saved(folder: Path, record: TrainingRecord | None = RECORD) -> Path:
    """A checkpoint of the tiny network, as training saves it."""
    save_checkpoint(folder, state_of(TINY), TINY, SHA256, record)
    return folder


def store(folder: Path, state: Mapping[str, Tensor], name: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    save_file({f"model.inner.{key}": tensor for key, tensor in state.items()}, folder / name)
    return folder


def write_config(folder: Path, **content: Any) -> None:  # noqa: ANN401
    (folder / "config.json").write_text(json.dumps({"format_version": 1, **content}))


def write_arch(folder: Path, **fields: Any) -> None:  # noqa: ANN401
    arch = {
        "name": "hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1",
        "loss": {"name": "losses@ACTLossHead", "loss_type": "stablemax_cross_entropy"},
        "H_cycles": 3,
        "L_cycles": 2,
        "H_layers": 1,
        "L_layers": 2,
        "hidden_size": 16,
        "num_heads": 2,
        "expansion": 4,
        "puzzle_emb_ndim": 16,
        "pos_encodings": "rope",
        "halt_max_steps": 8,
        "halt_exploration_prob": 0.1,
        **fields,
    }
    run = {"arch": arch, "data_path": "data/sqe", "epochs": 100, "eval_save_outputs": []}
    (folder / "all_config.yaml").write_text(yaml.dump(run))


def refusal(path: Path) -> str:
    """The error of loading `path`, which is one line."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)
