"""A stacking combiner: fitted on calibration examples, saved in a file and read again.

Knows JSON, engines and examples; the regression itself is `hrm.ensemble.combiners`.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from hrm.ensemble.combiners import StackingCoefficients
from hrm.inference.prediction import InferenceError, Prediction, Predictor, submit_when_room
from hrm.model.batch import ExampleError
from schemas import HRMExample, SQEHRMError, first_problem


class EnsembleError(SQEHRMError):
    """Checkpoints, weights or a combiner that do not make an ensemble."""


class Stacking(BaseModel):
    """A combiner fitted for certain members, in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: Literal[1] = 1
    members: tuple[str, ...] = Field(min_length=2, description="Digests of the members, in order.")
    calibration: str = Field(description="The file it was fitted on.")
    examples: int = Field(ge=1)
    tokens: int = Field(ge=1)
    weight: tuple[tuple[float, ...], ...] = Field(
        description="One row per token, with one number per token for each member."
    )
    bias: tuple[float, ...] = Field(description="One number per token.")

    @model_validator(mode="after")
    def _is_of_one_size(self) -> Self:
        tokens = len(self.bias)
        lengths = [len(row) for row in self.weight]
        if lengths != [tokens * len(self.members)] * tokens:
            raise ValueError("weight is not of the size that bias and members mean")
        return self

    def coefficients(self) -> StackingCoefficients:
        """The coefficients as tensors."""
        return StackingCoefficients(
            torch.tensor(self.weight, dtype=torch.float64),
            torch.tensor(self.bias, dtype=torch.float64),
        )


def read_stacking(path: Path) -> Stacking:
    """Read the combiner in the file `path`. Raises `EnsembleError` if it holds none."""
    try:
        return Stacking.model_validate_json(path.read_bytes())
    except OSError as error:
        raise EnsembleError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise EnsembleError(
            f"{path}: {first_problem(error)}: give a file that sqe-hrm ensemble wrote"
        ) from None


def fit_stacking(
    members: Sequence[tuple[str, Predictor]],
    weights: Sequence[float],
    examples: Sequence[HRMExample],
    calibration: str,
) -> Stacking:
    """Fit a combiner on the members' logits for `examples`.

    Examples that a member cannot take or answer are left out.

    Args:
        members: For each its digest, and an engine that keeps logits.
        weights: The ensemble's weights, with sum 1.
        examples: The calibration examples.
        calibration: What the combiner calls them.

    Raises:
        EnsembleError: No example is left.
    """
    answers = [_logits(engine, examples) for _, engine in members]
    logits: list[Tensor] = []
    targets: list[int] = []
    answered = 0
    for example, *given in zip(examples, *answers, strict=True):
        of_all = [each for each in given if each is not None]
        if len(of_all) == len(members):
            answered += 1
            targets += example.target_sequence
            logits.append(torch.stack(of_all, dim=0))
    if not answered:
        raise EnsembleError(f"{calibration}: no example to fit a combiner on: give another file")
    fitted = StackingCoefficients.fit(
        torch.cat(logits, dim=1),
        torch.tensor(targets),
        torch.tensor(weights, dtype=torch.float64),
    )
    return Stacking(
        members=tuple(digest for digest, _ in members),
        calibration=calibration,
        examples=answered,
        tokens=len(targets),
        weight=tuple(tuple(row) for row in fitted.weight.tolist()),
        bias=tuple(fitted.bias.tolist()),
    )


def _logits(engine: Predictor, examples: Sequence[HRMExample]) -> list[Tensor | None]:
    """Logits of each example, float32 (target length, V); None if there is no answer."""
    futures = [_submit(engine, example) for example in examples]
    found: list[Tensor | None] = []
    for example, future in zip(examples, futures, strict=True):
        try:
            logits = None if future is None else future.result().logits
        except InferenceError:
            logits = None
        # A copy: a slice would keep the whole sequences of all examples in memory.
        found.append(None if logits is None else logits[: len(example.target_sequence)].clone())
    return found


def _submit(engine: Predictor, example: HRMExample) -> Future[Prediction] | None:
    try:
        return submit_when_room(engine, example)
    except ExampleError:
        return None
