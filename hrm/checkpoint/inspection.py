"""The contents of a checkpoint: its parts, their sizes, and statistics of each tensor.

Knows tensors and their place in the network; nothing of terminals or tables. Runs no inference: how
good a model is, only its recorded figures say.
"""

import math
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from hrm.checkpoint import Checkpoint, TrainingRecord
from hrm.checkpoint.figures import RecordedFigures
from hrm.checkpoint.precision import RecordedPrecision
from schemas import HaltedBy

FLOAT32_BYTES = torch.float32.itemsize
"""Bytes of one parameter in memory: networks are built as float32, however they are stored."""

CHUNK = 1 << 20
"""Numbers converted to float64 at once: 8 MiB, so that a large table is never copied whole."""


class Component(StrEnum):
    """The parts of the network that parameters are counted by."""

    PUZZLE_EMBEDDINGS = "puzzle embeddings"
    TOKEN_EMBEDDINGS = "token embeddings"  # noqa: S105 - no password
    POSITION_EMBEDDINGS = "position embeddings"
    H_LEVEL = "H level"
    L_LEVEL = "L level"
    HEADS = "heads"
    INITIAL_STATES = "initial states"


_COMPONENTS = {
    "puzzle_emb": Component.PUZZLE_EMBEDDINGS,
    "embed_tokens": Component.TOKEN_EMBEDDINGS,
    "embed_pos": Component.POSITION_EMBEDDINGS,
    "H_level": Component.H_LEVEL,
    "L_level": Component.L_LEVEL,
    "lm_head": Component.HEADS,
    "q_head": Component.HEADS,
    "H_init": Component.INITIAL_STATES,
    "L_init": Component.INITIAL_STATES,
}
"""Component by the first part of a tensor's key; complete for the keys of `tensor_shapes`."""


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorStatistics(_Figures):
    """Statistics of one tensor.

    Means, deviation and range cover the finite numbers; they are null if there are none.
    """

    component: Component
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    mean: float | None
    mean_absolute: float | None
    standard_deviation: float | None = Field(description="Population standard deviation.")
    minimum: float | None
    maximum: float | None
    sparsity: float = Field(description="Share of numbers that are exactly zero.")
    nan: int
    infinite: int


class ComponentSize(_Figures):
    """Size of one part of the network."""

    component: Component
    parameters: int
    share: float = Field(description="Share of all parameters.")
    stored_bytes: int


class TrainingSummary(_Figures):
    """Summary of the training record."""

    format_version: int
    pairs: int = Field(description="Distinct pairs of puzzle and input, which verdicts call known.")
    target_token_counts: tuple[int, ...] = Field(
        description="Occurrences of each token in the targets, by its id."
    )
    prompts: int | None = Field(
        description="Prompts with hashes of their accepted completions; null in a record of "
        "version 1, which has none."
    )
    several_answers: int | None = Field(
        description="Prompts of these with several accepted completions that differ in more than "
        "white space, case and Unicode form; null in a record of version 1."
    )
    further_answers: int = Field(
        description="Accepted targets in puzzle rows of their own, beside that in the prompt's row."
    )
    varied_prompts: int = Field(description="Prompts that training varied.")


class PairsSummary(_Figures):
    """Summary of the accepted pairs that are kept as tokens."""

    pairs: int = Field(description="Accepted prompts with their completions.")
    solved: dict[HaltedBy, int] | None = Field(
        description="How many these weights solve under each halting rule; null if unknown."
    )


class TaskSummary(_Figures):
    """A task that the checkpoint knows."""

    name: str
    row: int = Field(description="Its row of the puzzle table.")
    found: bool = Field(description="Whether training found it, since no message named it.")
    prompts: int | None = Field(
        description="Prompts of it that were trained; null without a training record."
    )


class ConfigurationValue(_Figures):
    """Value of a configuration field, and its source."""

    value: Any
    source: str = Field(description="A file's name, `tensor shapes` or `default`.")


class Inspection(_Figures):
    """Everything that can be said about a checkpoint without running it."""

    name: str
    path: str
    digest: str = Field(
        description="SHA-256 of weights and configuration; independent of the file format."
    )
    parameters: int
    memory_bytes: int = Field(description="Size of the weights in memory, as float32.")
    stored_bytes: int = Field(description="Size of the weights in the dtypes they are stored in.")
    file_bytes: int = Field(description="Size of the weights file, with everything else in it.")
    puzzles: int = Field(description="Rows of the puzzle table; 0 without a table.")
    nan: int
    infinite: int
    dtypes: dict[str, int] = Field(description="Number of parameters stored in each dtype.")
    components: tuple[ComponentSize, ...]
    model: dict[str, ConfigurationValue]
    conversion: dict[str, ConfigurationValue]
    tasks: tuple[TaskSummary, ...]
    training: TrainingSummary | None
    accepted_pairs: PairsSummary | None = Field(
        description="Null if they are not kept, so that training further cannot replay them."
    )
    figures: RecordedFigures | None = Field(
        description="Figures that were recorded of these weights; null if there are none."
    )
    precision: RecordedPrecision | None = Field(
        description="What coarser dtypes than float32 change; null if it was not recorded."
    )
    halting: HaltedBy = Field(
        description="Halting rule that a worker chooses, unless its options name one."
    )
    tensors: dict[str, TensorStatistics]


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """Count and measure everything in `checkpoint`, from `read_checkpoint` or `load_checkpoint`."""
    tensors = {
        key: tensor_statistics(key, tensor)
        for key, tensor in sorted(checkpoint.state.items(), key=lambda item: _place(item[0]))
    }
    dtypes: Counter[str] = Counter()
    for tensor in tensors.values():
        dtypes[tensor.dtype] += tensor.parameters
    parameters = sum(tensor.parameters for tensor in tensors.values())
    config, training = checkpoint.config, checkpoint.training
    return Inspection(
        name=checkpoint.name,
        path=str(checkpoint.path),
        digest=checkpoint.digest,
        parameters=parameters,
        memory_bytes=parameters * FLOAT32_BYTES,
        stored_bytes=sum(tensor.nbytes for tensor in checkpoint.state.values()),
        file_bytes=checkpoint.path.stat().st_size,
        puzzles=config.num_puzzle_identifiers if config.puzzle_emb_ndim else 0,
        nan=sum(tensor.nan for tensor in tensors.values()),
        infinite=sum(tensor.infinite for tensor in tensors.values()),
        dtypes=dict(dtypes.most_common()),
        components=_component_sizes(checkpoint.state, parameters),
        model=_with_sources(
            {**config.model_dump(mode="json"), "token_head": config.token_head.value},
            checkpoint.config_sources,
        ),
        conversion=_with_sources(
            {k: v for k, v in checkpoint.conversion.in_force.items() if k != "tasks"},
            checkpoint.config_sources,
        ),
        tasks=tuple(
            TaskSummary(
                name=task.name,
                row=task.row,
                found=bool(task.template),
                prompts=None if training is None else training.prompts_of(task.row),
            )
            for task in checkpoint.conversion.tasks
        ),
        training=None if training is None else _summary(training),
        accepted_pairs=_pairs_summary(checkpoint),
        figures=checkpoint.figures,
        precision=checkpoint.precision,
        halting=checkpoint.halting_evidence().rule,
        tensors=tensors,
    )


def _pairs_summary(checkpoint: Checkpoint) -> PairsSummary | None:
    pairs = checkpoint.accepted_pairs()
    if pairs is None:
        return None
    known = pairs.solved_with(checkpoint.digest) is not None
    return PairsSummary(pairs=len(pairs), solved=pairs.counts if known else None)


def _summary(training: TrainingRecord) -> TrainingSummary:
    texts = None if training.accepted is None else training.accepted.texts
    return TrainingSummary(
        format_version=training.format_version,
        pairs=len(training.pair_hashes),
        target_token_counts=training.target_token_counts,
        prompts=None if texts is None else len(texts.prompts),
        several_answers=None if texts is None else texts.prompts_with_several,
        further_answers=sum(len(rows) - 1 for rows in training.answers.values()),
        varied_prompts=training.varied_prompts,
    )


def component_of(key: str) -> Component:
    """The part of the network to which the tensor named `key` belongs."""
    return _COMPONENTS[key.partition(".")[0]]


def tensor_statistics(key: str, tensor: Tensor) -> TensorStatistics:
    """Compute the statistics of `tensor`, of any floating point dtype and shape, in float64."""
    flat = tensor.detach().reshape(-1)
    chunks = torch.split(flat, CHUNK)
    nan, infinite, zeros = 0, 0, 0
    total, absolute = 0.0, 0.0
    low, high = math.inf, -math.inf
    for chunk in chunks:
        finite = _finite(chunk)
        if len(finite) < len(chunk):
            nan += int(chunk.isnan().sum())
            infinite += int(chunk.isinf().sum())
        if not len(finite):
            continue
        zeros += len(finite) - int(finite.count_nonzero())
        total += float(finite.sum())
        absolute += float(finite.abs().sum())
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    count = flat.numel() - nan - infinite
    mean = total / count if count else math.nan
    # A second pass: subtracting the squared mean from the mean square would lose precision.
    squares = math.fsum(float((_finite(chunk) - mean).square().sum()) for chunk in chunks)
    return TensorStatistics(
        component=component_of(key),
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        parameters=flat.numel(),
        mean=mean if count else None,
        mean_absolute=absolute / count if count else None,
        standard_deviation=math.sqrt(squares / count) if count else None,
        minimum=low if count else None,
        maximum=high if count else None,
        sparsity=zeros / flat.numel(),
        nan=nan,
        infinite=infinite,
    )


def _finite(chunk: Tensor) -> Tensor:
    """The finite numbers in the one-dimensional `chunk`, as float64."""
    wide = chunk.double()
    finite = wide.isfinite()
    # Nearly always true, and selecting the numbers would take longer than everything else.
    return wide if finite.all() else wide[finite]


def _place(key: str) -> tuple[int, str]:
    """Sort key that lists tensors by component, in the order of `Component`."""
    return list(Component).index(component_of(key)), key


def _component_sizes(state: Mapping[str, Tensor], total: int) -> tuple[ComponentSize, ...]:
    parameters: Counter[Component] = Counter()
    stored: Counter[Component] = Counter()
    for key, tensor in state.items():
        parameters[component_of(key)] += tensor.numel()
        stored[component_of(key)] += tensor.nbytes
    return tuple(
        ComponentSize(
            component=component,
            parameters=parameters[component],
            share=parameters[component] / total,
            stored_bytes=stored[component],
        )
        for component in Component
        if component in parameters
    )


def _with_sources(
    fields: Mapping[str, Any], sources: Mapping[str, str]
) -> dict[str, ConfigurationValue]:
    return {
        name: ConfigurationValue(value=value, source=sources[name])
        for name, value in fields.items()
    }
