"""The course of a training run as one image.

Knows figures by step; nothing of how they came about.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, BinaryIO

from hrm.evaluation.measurement import BothRules
from hrm.training.fit import Measurement, Progress
from hrm.training.trainer import StepReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _GREEN, _PURPLE, _GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777"

_PARTS = 40
"""Points of a grey line. Figures of single steps jump from batch to batch, so each point is the
mean over one of this many parts of the run."""

_LARGE, _SMALL = 8, 4
"""Marker sizes. Both rules often agree, and the larger marker stays visible behind the smaller."""


def plot_training(
    file: BinaryIO, curve: Sequence[StepReport], progress: Progress, title: str
) -> None:
    """Write a PNG of loss, accuracy, solve rate and ACT steps over the optimiser steps of a run.

    Grey lines show the figures of training itself, with raw weights and exploration. Lines with
    markers show inference with the averaged weights: solid for training examples, dashed and
    hollow for held-out examples.

    Args:
        file: Receives the image.
        curve: The report of every step.
        progress: The measurements; a dotted line marks the best.
        title: Shown above the plots.
    """
    # Imported here, because it takes a second and only the end of a training run needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import LogLocator, NullFormatter  # noqa: PLC0415

    figure = Figure(figsize=(10, 10), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    loss, share, act = figure.subplots(3, sharex=True, height_ratios=(2, 3, 2))
    figure.suptitle(title)

    steps = [report.step for report in curve]
    loss.plot(
        steps,
        [report.loss for report in curve],
        color=_GREY,
        alpha=0.35,
        linewidth=0.8,
        label="each step",
    )
    _averaged(loss, curve, lambda report: (report.loss, 1), "mean of a few steps")
    loss.set(ylabel="loss", yscale="log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter(NullFormatter())

    _averaged(share, curve, lambda report: (report.accuracy, report.halted), "tokens, in training")
    for label, color, size, figure_of in (
        ("tokens, max_steps", _GREEN, _SMALL, lambda of: of.max_steps.token_accuracy),
        (
            "solved, max_steps",
            _BLUE,
            _LARGE,
            lambda of: of.max_steps.solved / of.max_steps.examples,
        ),
        ("solved, q", _ORANGE, _SMALL, lambda of: of.q.solved / of.q.examples),
        # While nothing is solved, the Q head is right by refusing all.
        (
            "Q head right, q",
            _PURPLE,
            _SMALL,
            lambda of: of.q.q_accuracy if of.q.solved else math.nan,
        ),
    ):
        _measured(share, progress.measurements, figure_of, color, size, label)
    share.set(ylabel="share right", ylim=(-0.03, 1.03))

    _averaged(act, curve, lambda report: (report.act_steps, report.halted), "in training")
    _measured(
        act, progress.measurements, lambda of: of.q.mean_act_steps, _ORANGE, _SMALL, "under q"
    )
    act.set(xlabel="optimiser step", ylabel="mean ACT steps", ylim=(0, None))

    for axes in (loss, share, act):
        if progress.best is not None:
            axes.axvline(progress.best.step, color="black", linestyle=":", linewidth=1, zorder=0)
        axes.grid(alpha=0.25)
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(file, format="png")


def _averaged(
    axes: "Axes",
    curve: Sequence[StepReport],
    figure_of: Callable[[StepReport], tuple[float | None, int]],
    label: str,
) -> None:
    """Draw a line through the weighted means of a figure over each part of the run.

    `figure_of` gives the figure of a step and its weight.
    """
    size = max(1, len(curve) // _PARTS)
    steps, means = [], []
    for start in range(0, len(curve), size):
        part = curve[start : start + size]
        figures = [(value, weight) for value, weight in map(figure_of, part) if value is not None]
        if figures:
            steps.append(sum(report.step for report in part) / len(part))
            total = sum(weight for _, weight in figures)
            means.append(sum(value * weight for value, weight in figures) / total)
    axes.plot(steps, means, color=_GREY, label=label)


def _measured(
    axes: "Axes",
    measurements: Sequence[Measurement],
    figure_of: Callable[[BothRules], float],
    color: str,
    size: int,
    label: str,
) -> None:
    sets = (
        ("", "-", color, [(m.step, m.training) for m in measurements]),
        (", held out", "--", "white", [(m.step, m.held_out) for m in measurements if m.held_out]),
    )
    for suffix, style, face, points in sets:
        if points:
            axes.plot(
                [step for step, _ in points],
                [figure_of(rules) for _, rules in points],
                color=color,
                linestyle=style,
                marker="o",
                markersize=size,
                markerfacecolor=face,
                label=label + suffix,
            )
