"""What an evaluation found: the form of its report. How it is counted: `hrm.evaluation.counters`.

Every figure comes from inference; where there is no example to take one from, it is null.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hrm.data.vocabulary import VOCABULARY
from hrm.evaluation.statistics import MedianSummary, Share, Summary
from schemas import HaltedBy


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PredictionFigures(_Model):
    """How predictions compare with their targets, whoever made them."""

    examples: int
    solved: Share = Field(description="Examples with every target token right.")
    correct_tokens: int
    target_tokens: int
    token_accuracy: float | None = Field(description="By token: correct of all target tokens.")
    token_accuracy_by_example: Summary = Field(description="Each example's share of right tokens.")
    edit_similarity: Summary


class Figures(PredictionFigures):
    """All that was measured of a set of examples."""

    act_steps: MedianSummary
    act_steps_solved: MedianSummary = Field(description="Of solved examples only.")
    efficiency: float | None = Field(
        description="Mean ACT steps / max_steps: the share of the allowed steps that was used."
    )
    halted_by: dict[HaltedBy, int]
    q_halt: Summary = Field(description="Logit at the last step.")
    q_continue: Summary = Field(description="Logit at the last step.")
    q_flips: MedianSummary = Field(
        description="Of an example: how often the sign of q_halt - q_continue changed."
    )
    flipped: int = Field(description="Examples with any flip.")
    q_right: Share = Field(description="Examples where (q_halt >= 0) == solved.")
    inference_seconds: MedianSummary = Field(
        description="Handed to the engine until answered, waiting for a slot included. "
        "The median is right within 2.5 %."
    )


class ReliabilityBin(_Model):
    """Examples whose sigmoid(q_halt) lies in [low, high), the last bin including 1."""

    low: float
    high: float
    examples: int
    mean_predicted: float | None = Field(description="Mean sigmoid(q_halt).")
    solved: Share


class PositionFigures(_Model):
    """One position of the target, from 0."""

    position: int
    tokens: int
    correct: int
    accuracy: float | None


class Confusion(_Model):
    """How often which target token was predicted as which, right ones included."""

    tokens: tuple[str, ...] = VOCABULARY
    counts: tuple[tuple[int, ...], ...] = Field(description="A row a target, a column a guess.")


class BaselineFigures(_Model):
    """What a guess that never looks at the input gets on the same examples."""

    name: str
    fitted_on: str = Field(description="The training targets it was counted from.")
    tokens: tuple[int, ...] = Field(description="What it guesses for every example.")
    overall: PredictionFigures
    by_known: dict[str, PredictionFigures] | None


class Setting(_Model):
    """What was run, and how."""

    checkpoint: str
    checkpoint_digest: str
    trained_max_steps: int = Field(description="The configuration's halt_max_steps.")
    device: str
    dtype: str
    batch_size: int
    halting: HaltedBy
    max_steps: int


class Lines(_Model):
    """What the file held. `messages` and `examples` together were evaluated."""

    messages: int = Field(description="Raw messages and bare pairs.")
    examples: int = Field(description="Already converted.")
    refused: dict[str, int] = Field(description="By reason.")


class Seconds(_Model):
    """Without loading the checkpoint."""

    total: float = Field(description="By the clock, from the first line to the last verdict.")
    per_example: float | None = Field(description="total / examples.")
    convert: MedianSummary = Field(description="Of one line: parsing and conversion.")
    inference: MedianSummary = Field(
        description="Of one example: waiting for a slot, and in it. Up to batch_size are in work "
        "at once, so these are longer than per_example."
    )


class EvaluationReport(_Model):
    """Every figure of an evaluation. Null: there was no example to take it from."""

    format_version: Literal[1] = 1
    data: str
    setting: Setting
    lines: Lines
    seconds: Seconds
    overall: Figures
    by_known: dict[str, Figures] | None = Field(
        description="Null where the checkpoint has no record of its training pairs."
    )
    by_difficulty: dict[str, Figures]
    by_category: dict[str, Figures] = Field(
        description="`unknown` holds converted examples, which have no prompt to tell it by."
    )
    by_failure_pattern: dict[str, Figures] = Field(description="Of unsolved examples.")
    reliability: tuple[ReliabilityBin, ...]
    by_position: tuple[PositionFigures, ...]
    confusion: Confusion
    baselines: tuple[BaselineFigures, ...]
