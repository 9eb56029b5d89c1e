"""The form of an evaluation's report; `hrm.evaluation.counters` counts its figures.

Every figure comes from inference. A figure that has no example to be taken from is null.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hrm.evaluation.statistics import MedianSummary, Share, Summary
from schemas import HaltedBy


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PredictionFigures(_Model):
    """Comparison of predictions, of a network or of a baseline, with their targets."""

    examples: int
    solved: Share = Field(
        description="Examples with every target token right and, if the prompt is known, a target "
        "of an accepted length."
    )
    correct_tokens: int
    target_tokens: int
    token_accuracy: float | None = Field(description="Correct tokens / target tokens.")
    token_accuracy_by_example: Summary = Field(description="Share of right tokens of an example.")
    edit_similarity: Summary


class Figures(PredictionFigures):
    """All figures of a set of examples."""

    act_steps: MedianSummary
    act_steps_solved: MedianSummary = Field(description="Over solved examples only.")
    efficiency: float | None = Field(
        description="Mean ACT steps / max_steps: the share of the allowed steps that was used."
    )
    halted_by: dict[HaltedBy, int]
    q_halt: Summary = Field(description="Logit at the last step.")
    q_continue: Summary = Field(description="Logit at the last step.")
    q_flips: MedianSummary = Field(
        description="How often the sign of q_halt - q_continue changed in an example."
    )
    flipped: int = Field(description="Examples with any flip.")
    q_right: Share = Field(description="Examples where (q_halt >= 0) == solved.")
    inference_seconds: MedianSummary = Field(
        description="From submission to answer, waiting for a slot included. "
        "The median is exact within 2.5 %."
    )


class ReliabilityBin(_Model):
    """Examples with sigmoid(q_halt) in [low, high); the last bin includes 1."""

    low: float
    high: float
    examples: int
    mean_predicted: float | None = Field(description="Mean sigmoid(q_halt).")
    solved: Share


class PositionFigures(_Model):
    """Figures of one target position, counted from 0."""

    position: int
    tokens: int
    correct: int
    accuracy: float | None


class Confusion(_Model):
    """How often each target token was predicted as each token, right ones included."""

    tokens: tuple[str, ...] = Field(description="Names of the rows.")
    predictions: tuple[str, ...] = Field(
        description="Names of the columns. Hashed tokens share a row and a column, and wrong ones "
        "among them have a column of their own."
    )
    counts: tuple[tuple[int, ...], ...] = Field(
        description="One row per target token, one column per prediction."
    )


class BaselineFigures(_Model):
    """Results of a predictor without a network, on the same examples."""

    name: str
    fitted_on: str = Field(description="The training pairs it was made from.")
    tokens: tuple[int, ...] | None = Field(
        description="The guess, if it is the same for every example; null if it follows the input."
    )
    overall: PredictionFigures
    by_known: dict[str, PredictionFigures] | None
    by_match: dict[str, PredictionFigures] = Field(
        description="By how the checkpoint's training set knows the prompt."
    )


class Setting(_Model):
    """The checkpoint, and how it was run."""

    checkpoint: str
    checkpoint_digest: str
    trained_max_steps: int = Field(description="The configuration's halt_max_steps.")
    device: str
    dtype: str
    batch_size: int
    halting: HaltedBy
    max_steps: int


class Lines(_Model):
    """Contents of the file. `messages` and `examples` were evaluated."""

    messages: int = Field(description="Raw messages and bare pairs.")
    examples: int = Field(description="Examples that were converted before.")
    refused: dict[str, int] = Field(description="Refused lines, by reason.")


class Seconds(_Model):
    """Durations, without the loading of the checkpoint."""

    total: float = Field(description="By the clock, from the first line to the last verdict.")
    per_example: float | None = Field(description="total / examples.")
    convert: MedianSummary = Field(description="Parsing and conversion of one line.")
    inference: MedianSummary = Field(
        description="Time of one example in the engine, waiting for a slot included. Up to "
        "batch_size examples are in work at once, so it is longer than per_example."
    )


class EvaluationReport(_Model):
    """Every figure of an evaluation; null if there was no example to take it from."""

    format_version: Literal[1] = 1
    data: str
    setting: Setting
    lines: Lines
    seconds: Seconds
    all_pairs_counted: bool = Field(
        description="Whether the data holds every training pair of the checkpoint, each with one "
        "completion, which is an accepted one as far as that is known. Shares of groups that hold "
        "only known examples then have no interval: they are counted, not estimated."
    )
    overall: Figures
    by_known: dict[str, Figures] | None = Field(
        description="Null if the checkpoint has no record of its training pairs."
    )
    by_match: dict[str, Figures] = Field(
        description="By how the training set knows the prompt; `pair` are the known ones."
    )
    by_text: dict[str, Figures] = Field(
        description="By whether the completion is an accepted one, which the model does not decide."
    )
    truncated: int = Field(description="Messages with words that the model does not read.")
    unread_words: int = Field(description="Words of these messages that the model does not read.")
    by_difficulty: dict[str, Figures]
    by_category: dict[str, Figures] = Field(
        description="`unknown` holds converted examples, which have no prompt to guess it from."
    )
    by_failure_pattern: dict[str, Figures] = Field(description="Unsolved examples only.")
    reliability: tuple[ReliabilityBin, ...] = Field(
        description="The Q head sees the puzzle and the prompt, never the completion. What it "
        "states is about the accepted completion: for changed ones this is no calibration."
    )
    by_position: tuple[PositionFigures, ...]
    confusion: Confusion
    baselines: tuple[BaselineFigures, ...]
