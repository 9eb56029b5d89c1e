"""The reference's tiny checkpoint, with its inputs and outputs."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hrm.checkpoint import load_checkpoint
from hrm.model.batch import Batch
from hrm.model.config import IGNORE_LABEL, HRMConfig
from hrm.model.network import HRM
from schemas import HaltedBy, HRMExample
from tests.support.examples import example
from tests.support.processor import IS_INTEL

REFERENCE = Path(__file__).parents[1] / "fixtures" / "hrm_reference"

MAX_STEPS = 16
"""Number of ACT steps with stored outputs."""

FIRST_STEP_TOLERANCE = 1e-3
"""Largest difference from the stored outputs of the first step, on any processor."""

same_rounding = pytest.mark.skipif(
    IS_INTEL or torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="the stored outputs are those of an AMD processor with AVX-512; the reference's "
    "untrained network multiplies other rounding by a hundred at each ACT step",
)
"""For tests that compare with stored outputs after more than one ACT step."""


@cache
def facts() -> dict[str, Any]:
    """The configuration, and the figures at the last step."""
    content: dict[str, Any] = json.loads((REFERENCE / "reference.json").read_text())
    return content


@cache
def recorded() -> dict[str, Tensor]:
    """Inputs, labels, and the logits of every step."""
    return load_file(REFERENCE / "reference_outputs.safetensors")


@cache
def _state() -> dict[str, Tensor]:
    return dict(load_checkpoint(REFERENCE / "reference_checkpoint.pt").state)


def network() -> HRM:
    """A new network with the reference's weights."""
    built = HRM(HRMConfig(**facts()["config"]))
    built.load_state_dict(_state())
    return built.eval()


@cache
def batch() -> Batch:
    """The nine examples as tensors."""
    data = recorded()
    return Batch(data["inputs"].long(), data["labels"].long(), data["puzzle_identifiers"].long())


@cache
def examples() -> list[HRMExample]:
    """The nine examples."""
    return [
        example(puzzle_id, tuple(inputs), tuple(label for label in labels if label != IGNORE_LABEL))
        for puzzle_id, inputs, labels in zip(
            batch().puzzle_ids.tolist(),
            batch().inputs.tolist(),
            batch().labels.tolist(),
            strict=True,
        )
    ]


def halting_steps(halting: HaltedBy, max_steps: int = MAX_STEPS) -> list[int]:
    """Number of steps after which each example halts, by the stored Q logits."""
    if halting is HaltedBy.MAX_STEPS:
        return [max_steps] * len(batch())
    data = recorded()
    prefers_halt = data["q_halt_logits"] > data["q_continue_logits"]
    return [
        next((step for step in range(1, max_steps) if prefers_halt[step - 1, row]), max_steps)
        for row in range(len(batch()))
    ]


def tokens_at(steps: list[int]) -> Tensor:
    """int64 (B, S): the tokens predicted for each example after its number of steps."""
    logits = recorded()["logits"]
    return torch.stack([logits[step - 1, row].argmax(-1) for row, step in enumerate(steps)])


def q_logits_at(steps: list[int]) -> Tensor:
    """float32 (B, 2): q_halt and q_continue of each example after its number of steps."""
    data = recorded()
    both = torch.stack((data["q_halt_logits"], data["q_continue_logits"]), -1)
    return torch.stack([both[step - 1, row] for row, step in enumerate(steps)])


def flips_until(steps: list[int]) -> list[int]:
    """Number of changes of each example's preference within its number of steps."""
    data = recorded()
    prefers_halt = data["q_halt_logits"] > data["q_continue_logits"]
    return [
        int((prefers_halt[1:step, row] != prefers_halt[: step - 1, row]).sum())
        for row, step in enumerate(steps)
    ]
