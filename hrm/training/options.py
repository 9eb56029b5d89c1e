"""Options of a training run, as typed and frozen values.

Knows the values and their limits; nothing of files, networks or a command line.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from hrm.data.config import ENOUGH_PROMPTS, MAX_HASHED_TOKENS, ConversionConfig
from hrm.training.answers import Contradictions
from hrm.training.plan import (
    LEAST_EPISODES,
    LEAST_ROWS,
    MOST_EPISODES,
    NOISE_FACTOR,
    ROWS_PER_MESSAGE,
)
from hrm.training.trainer import Recipe, TrainingConfig
from schemas import SQEHRMError


class OptionsError(SQEHRMError):
    """Options that exclude each other, or that a saved run or a checkpoint contradicts.

    Attributes:
        names: The fields concerned.
        problem: What is wrong with them and how to fix it; it continues after the names.
    """

    def __init__(self, names: Sequence[str], problem: str) -> None:
        super().__init__(f"{' and '.join(names)}{problem}")
        self.names = tuple(names)
        self.problem = problem


def check_given(
    given: Mapping[str, object],
    inherited: Mapping[str, object],
    source: str,
    fix: str = "leave it out, or start anew in another folder",
) -> None:
    """Raise `OptionsError` for a given option of which `source` has another value."""
    for name, has in inherited.items():
        if name in given and given[name] != has:
            shown = "none" if has is None else has
            raise OptionsError([name], f" {given[name]}, but {source} has {shown}: {fix}")


class TrainingOptions(Recipe):
    """Everything that decides what the steps of a run do: the recipe, and what it is applied to.

    A run's record keeps it, and a run is resumed only with the same. Fields that were not given
    are taken from the saved run, or from the checkpoint of `init_from`. Numbers that are None are
    settled before the run starts, from the number of messages.
    """

    steps: int | None = Field(
        default=None,
        ge=1,
        description="Largest number of optimiser steps. Without it, as many as give each example "
        f"{LEAST_EPISODES} (of many) to {MOST_EPISODES} (of few) episodes, or {NOISE_FACTOR:g} "
        "times as many with prompt noise.",
    )

    init_from: str | None = Field(
        default=None,
        description="Name or path of a checkpoint whose weights, sizes and conversion to start "
        "with. The accepted pairs that it holds are trained on, too.",
    )
    forget: bool = Field(
        default=False,
        description="With --init-from: train on the new messages alone. The prompts that the "
        "checkpoint knew become unknown.",
    )
    held_out: Path | None = Field(
        default=None, description="JSONL file to measure on and never train on."
    )
    held_out_share: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of the training data to hold out, drawn by the seed, instead of a file.",
    )
    contradictions: Contradictions = Field(
        default=Contradictions.REFUSE,
        description="How to take lines that give one prompt different completions without "
        '"alternative": true: refuse the file, train on the first or the last completion alone, or '
        "accept all.",
    )
    forward_dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="Data type of activations in training; auto picks bfloat16 if the device "
        "computes in it.",
    )
    hidden_size: int = Field(default=256, ge=1, description="Width of the network.")
    num_heads: int = Field(default=8, ge=1, description="Attention heads of each layer.")
    layers: int | Annotated[str, StringConstraints(pattern=r"^\d+ and \d+$")] = Field(
        default=2, description="Layers of each level."
    )
    """`H and L` for a checkpoint whose levels differ."""
    puzzle_space: int | None = Field(
        default=None,
        ge=1,
        description="Number of puzzle ids given to messages that have none. Without it, "
        f"{ROWS_PER_MESSAGE} for each such message, and {LEAST_ROWS} at least.",
    )
    conversion: Literal[1, 2] = Field(
        default=2,
        description="Conversion of messages to tokens: 1 has 12 tokens and reads 98 words, 2 reads "
        "whole texts and tells nearly all words apart.",
    )
    hashed_tokens: int = Field(
        default=ConversionConfig().hashed_tokens,
        ge=1,
        le=MAX_HASHED_TOKENS,
        description="Conversion 2: number of tokens for words.",
    )
    case_sensitive: bool = Field(
        default=False, description="Conversion 2: tell upper and lower case apart."
    )
    find_tasks: bool = Field(
        default=False,
        description="Find tasks among the prompts that name neither a task nor a puzzle: those of "
        f"which {ENOUGH_PROMPTS} or more have most words in common.",
    )
    exploration: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of examples that must run a random number of steps before they may "
        "halt.",
    )
    measure_every: int = Field(
        default=100, ge=1, description="Steps from one measurement to the next."
    )
    measure_sample: int = Field(
        default=128,
        ge=1,
        description="Messages that are measured during training, drawn by the seed: at most this "
        "many of those trained on, and of those held out. All are measured at the end.",
    )

    @property
    def config(self) -> TrainingConfig:
        """The recipe, once its length is settled."""
        return TrainingConfig(**{name: getattr(self, name) for name in TrainingConfig.model_fields})


class RunPolicy(BaseModel):
    """When a run gives up, and which steps it keeps: free to change when it is resumed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop after this many measurements in a row without a better one.",
    )
    save_every: int | None = Field(
        default=None,
        ge=1,
        description="Steps from one saved step_N to the next. The best and the last step are "
        "always saved.",
    )
    save_minutes: int = Field(
        default=10,
        ge=1,
        description="Minutes after the last saved step_N at which another is saved, measured or "
        "not, so that a crash costs no more.",
    )
    keep: int = Field(default=3, ge=1, description="How many of the latest step_N folders to keep.")
