"""Changes of the weights between consecutive checkpoints of a run.

Knows several checkpoints, in order. Weights show how far they moved and whether they still move.
Only inference shows which checkpoint is better: `hrm.evaluation.recommendation`, whose results are
part of a comparison here.
"""

import math
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from hrm.checkpoint import Checkpoint
from hrm.checkpoint.inspection import CHUNK, Inspection, TensorStatistics, inspect_checkpoint
from hrm.evaluation.outcomes import PairedFigures
from hrm.evaluation.recommendation import (
    CheckpointFigures,
    Measurements,
    Recommendation,
    labels_of,
    recommend,
)

CONVERGED_BELOW = 0.01
"""Weights have converged when no tensor moved further than this share of its norm.

Measured on sqe-demo, three draws of random noise for each size: 1 % of each tensor's norm costs at
most 1 of its 84 solved messages, 5 % up to 4, and 10 % about a third of them. Checkpoints a few
steps apart always lie close: the rule means something between steps a good part of a run apart."""


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorChange(_Figures):
    """Change of one tensor between two checkpoints; percentages are null if it was all zeros."""

    magnitude_percent: float | None = Field(description="Change of the mean absolute value.")
    spread_percent: float | None = Field(description="Change of the standard deviation.")
    moved: float | None = Field(
        description="Norm of the difference, as a share of the larger norm; null for other shapes."
    )


class StepChange(_Figures):
    """Change of all weights between two consecutive checkpoints."""

    earlier: str
    later: str
    magnitude_percent: float | None = Field(
        description="Over all numbers; not a mean over tensors."
    )
    spread_percent: float | None
    moved: float | None = Field(
        description="Distance of the comparable tensor that moved furthest."
    )
    converged: bool | None = Field(
        description="No tensor moved further than the rule allows; null for different networks."
    )
    only_earlier: tuple[str, ...] = Field(description="Tensors that the later one lacks.")
    only_later: tuple[str, ...]
    tensors: dict[str, TensorChange] = Field(description="Those that moved furthest come first.")


class Comparison(_Figures):
    """Inspections, changes and measurements of several checkpoints, in their order."""

    checkpoints: dict[str, Inspection] = Field(description="By name, or by path if names repeat.")
    steps: tuple[StepChange, ...]
    converged_below: float = CONVERGED_BELOW
    data: str | None = Field(description="File of the measurement; null if nothing was measured.")
    refused_lines: int = Field(
        description="Lines of the data that are neither a message nor an example."
    )
    repeated_lines: int = Field(
        description="Lines whose example equals that of an earlier line. They are measured once."
    )
    measured: tuple[CheckpointFigures, ...]
    pairs: tuple[PairedFigures, ...] = Field(
        description="Each two checkpoints on the same messages, under each halting rule."
    )
    recommendations: tuple[Recommendation, ...]


def compare_checkpoints(
    checkpoints: Sequence[Checkpoint],
    measured: Measurements | None = None,
    *,
    data: str | None = None,
    refused_lines: int = 0,
) -> Comparison:
    """Compare at least two loaded checkpoints.

    Args:
        checkpoints: The checkpoints, the earliest first.
        measured: The result of `measure_messages`.
        data: The file that it was measured on.
        refused_lines: Number of its lines that were refused.
    """
    inspections = [inspect_checkpoint(checkpoint) for checkpoint in checkpoints]
    labels = labels_of(checkpoints)
    measured = measured or Measurements()
    return Comparison(
        checkpoints=dict(zip(labels, inspections, strict=True)),
        steps=tuple(
            _step_change(labels[i : i + 2], checkpoints[i : i + 2], inspections[i : i + 2])
            for i in range(len(checkpoints) - 1)
        ),
        data=data,
        refused_lines=refused_lines,
        repeated_lines=measured.repeats,
        measured=measured.figures,
        pairs=measured.pairs,
        recommendations=tuple(recommend(measured.pairs)),
    )


def _step_change(
    labels: Sequence[str], checkpoints: Sequence[Checkpoint], inspections: Sequence[Inspection]
) -> StepChange:
    earlier, later = (inspection.tensors for inspection in inspections)
    tensors = {
        key: TensorChange(
            magnitude_percent=_percent(_magnitude([earlier[key]]), _magnitude([later[key]])),
            spread_percent=_percent(_spread([earlier[key]]), _spread([later[key]])),
            moved=_moved(checkpoints[0].state[key], checkpoints[1].state[key]),
        )
        for key in earlier
        if key in later
    }
    distances = [change.moved for change in tensors.values() if change.moved is not None]
    moved = max(distances, default=None)
    same_network = len(distances) == len(earlier) == len(later)
    before, after = list(earlier.values()), list(later.values())
    return StepChange(
        earlier=labels[0],
        later=labels[1],
        magnitude_percent=_percent(_magnitude(before), _magnitude(after)),
        spread_percent=_percent(_spread(before), _spread(after)),
        moved=moved,
        converged=moved <= CONVERGED_BELOW if same_network and moved is not None else None,
        only_earlier=tuple(sorted(earlier.keys() - later.keys())),
        only_later=tuple(sorted(later.keys() - earlier.keys())),
        tensors=dict(sorted(tensors.items(), key=lambda item: _furthest_first(item[1]))),
    )


def _furthest_first(change: TensorChange) -> float:
    """Sort key by distance. A change of shape counts as the largest distance."""
    return -math.inf if change.moved is None else -change.moved


def _percent(before: float, after: float) -> float | None:
    if before == after:
        return 0.0
    return 100 * (after / before - 1) if before else None


def _magnitude(tensors: Sequence[TensorStatistics]) -> float:
    """Mean absolute value of all numbers in `tensors`."""
    total = sum((tensor.mean_absolute or 0.0) * tensor.parameters for tensor in tensors)
    return total / sum(tensor.parameters for tensor in tensors)


def _spread(tensors: Sequence[TensorStatistics]) -> float:
    """Standard deviation of all numbers in `tensors`."""
    count = sum(tensor.parameters for tensor in tensors)
    mean = sum((tensor.mean or 0.0) * tensor.parameters for tensor in tensors) / count
    squares = sum(
        ((tensor.standard_deviation or 0.0) ** 2 + ((tensor.mean or 0.0) - mean) ** 2)
        * tensor.parameters
        for tensor in tensors
    )
    return math.sqrt(squares / count)


def _moved(before: Tensor, after: Tensor) -> float | None:
    """Norm of the difference over the larger norm: 0 for equal tensors, never infinite."""
    if before.shape != after.shape:
        return None
    pairs = zip(
        torch.split(before.reshape(-1), CHUNK), torch.split(after.reshape(-1), CHUNK), strict=True
    )
    sums = [
        torch.stack([values.square().sum() for values in (a, b, b - a)])
        for a, b in ((a.double(), b.double()) for a, b in pairs)
    ]
    square_before, square_after, square_moved = torch.stack(sums).sum(0).tolist()
    largest = max(square_before, square_after)
    return math.sqrt(square_moved / largest) if largest else 0.0
