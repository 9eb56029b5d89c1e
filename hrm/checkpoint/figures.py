"""The recorded figures of a checkpoint: how good its weights were measured to be, by halting rule.

Knows what a worker needs to choose a halting rule by evidence, and to compare its live figures
with; nothing of how it is measured, and no torch. `measured.json` is free in form and tells how a
run went, of which only its day is read. This file is strict, and bound to the weights by their
digest.
"""

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from hrm.checkpoint.bound import Bound, Strict, read_bound, write_bound
from schemas import HaltedBy

FIGURES = "figures.json"
"""File in a checkpoint folder that holds its `RecordedFigures`."""

MEASURED = "measured.json"
"""File in a checkpoint folder that tells how its training went."""

Q_RIGHT_PERCENT = 95
"""Percentage of accepted pairs about which the Q head has to be right to decide when to halt."""

_Count = Annotated[int, Field(ge=0)]


class RecordedRule(Strict):
    """Figures under one halting rule."""

    solved: _Count
    tokens_right: _Count
    q_right: _Count = Field(
        description="Messages for which `q_halt >= 0` is right about whether they are solved."
    )
    mean_act_steps: float = Field(ge=1, allow_inf_nan=False)


class RecordedSet(Strict):
    """Figures of one set of messages, under both halting rules."""

    messages: int = Field(ge=1)
    target_tokens: int = Field(ge=1)
    max_steps: RecordedRule
    q: RecordedRule

    def of(self, rule: HaltedBy) -> RecordedRule:
        """The figures under `rule`."""
        return self.q if rule is HaltedBy.Q else self.max_steps

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        for rule in HaltedBy:
            figures = self.of(rule)
            for name, most in (
                ("solved", self.messages),
                ("q_right", self.messages),
                ("tokens_right", self.target_tokens),
            ):
                if (count := getattr(figures, name)) > most:
                    raise ValueError(f"{rule}.{name}: {count} of {most}")
        return self


class Evidence(NamedTuple):
    """The halting rule that figures support, and why."""

    rule: HaltedBy
    why: str

    @property
    def reason(self) -> str:
        """The rule in words, and why."""
        return f"{'q' if self.rule is HaltedBy.Q else 'fixed steps'}: {self.why}"


class RecordedFigures(Bound):
    """Figures of a checkpoint's inference, measured with the plain loop."""

    halt_max_steps: int = Field(ge=1, description="Most ACT steps under both rules.")
    dtype: Literal["float32"] = "float32"
    date: date
    version: str = Field(description="Release of this project that measured.")
    accepted: RecordedSet = Field(
        description="All accepted pairs that the checkpoint was trained on: counted, not sampled."
    )
    held_out: RecordedSet | None = Field(
        default=None, description="Messages that were never trained on: a sample."
    )

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        for name, figures in (("accepted", self.accepted), ("held_out", self.held_out)):
            for rule in HaltedBy:
                steps = 1.0 if figures is None else figures.of(rule).mean_act_steps
                if steps > self.halt_max_steps:
                    raise ValueError(
                        f"{name}.{rule}.mean_act_steps: {steps:g} of {self.halt_max_steps}"
                    )
        return self

    def evidence(self, max_steps: int | None = None) -> Evidence:
        """The halting rule that these figures support for a limit of `max_steps` ACT steps.

        `q` is supported if it solves some accepted pair and no fewer messages of each measured set
        than fixed steps, and if the Q head is right about at least 95 % of the accepted pairs.
        Figures say nothing of another limit than their own, which is the default.
        """
        limit, pairs = self.halt_max_steps, self.accepted
        if max_steps not in {None, limit}:
            return _fixed(f"the figures were measured with at most {limit} steps, not {max_steps}")
        for of, figures in (("", pairs), (" of the held-out messages", self.held_out)):
            if figures is not None and figures.q.solved < figures.max_steps.solved:
                return _fixed(
                    f"q solves {figures.q.solved:,}{of}, fixed steps {figures.max_steps.solved:,}"
                )
        if not pairs.q.solved:
            # A Q head that refuses everything is right about all of it.
            return _fixed("q solves no accepted pair")
        right = f"Q head right for {pairs.q.q_right:,} of {pairs.messages:,}"
        if 100 * pairs.q.q_right < Q_RIGHT_PERCENT * pairs.messages:
            return _fixed(f"{right} under q: fewer than {Q_RIGHT_PERCENT} %")
        fixed = pairs.max_steps.solved
        as_fixed = "as" if fixed == pairs.q.solved else f"{fixed:,}"
        return Evidence(
            HaltedBy.Q,
            f"solves {pairs.q.solved:,} of {pairs.messages:,}, {as_fixed} under {limit} fixed "
            f"steps, {right}, {pairs.q.mean_act_steps:.2f} steps instead of {limit}",
        )


def halting_evidence(figures: RecordedFigures | None, max_steps: int | None = None) -> Evidence:
    """`RecordedFigures.evidence`, of a checkpoint that may have no figures."""
    if figures is None:
        return _fixed("no figures recorded, and sqe-hrm checkpoint record measures them")
    return figures.evidence(max_steps)


def joint_evidence(members: Mapping[str, Evidence]) -> Evidence:
    """The halting rule for several checkpoints that answer as one, from that of each by its name.

    Each member halts by itself, so `q` is supported if every member's figures support it.
    """
    fixed = {name: each for name, each in members.items() if each.rule is not HaltedBy.Q}
    why = "; ".join(f"{name}: {each.why}" for name, each in (fixed or members).items())
    return _fixed(why) if fixed else Evidence(HaltedBy.Q, why)


def read_figures(file: Path, digest: str) -> RecordedFigures | None:
    """Read the figures in `file` of the checkpoint with `digest`.

    Returns:
        None if there is no such file, or if its figures are of other weights, which is logged.

    Raises:
        CheckpointError: The file is damaged or cannot be read.
    """
    return read_bound(file, RecordedFigures, digest)


def read_training_day(file: Path) -> date | None:
    """Read the day of a checkpoint's training from its `measured.json`.

    None if it does not say so: the file is free in form, and no checkpoint needs it.
    """
    try:
        return date.fromisoformat(json.loads(file.read_bytes())["date"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def write_figures(folder: Path, figures: RecordedFigures) -> Path:
    """Write the figures of the checkpoint in `folder` atomically, and return their file.

    Raises `CheckpointError`.
    """
    return write_bound(folder / FIGURES, figures)


def _fixed(reason: str) -> Evidence:
    return Evidence(HaltedBy.MAX_STEPS, reason)
