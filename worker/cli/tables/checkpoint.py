"""Checkpoints on the screen: inspections and comparisons, in tables of up to 100 columns.

Knows what `hrm.checkpoint.inspection` and `hrm.evaluation.comparison` say, and rich; computes
nothing.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from hrm.checkpoint.inspection import Component, ConfigurationValue, Inspection, TensorStatistics
from hrm.evaluation.comparison import CONVERGED_BELOW, Comparison, StepChange, TensorChange
from hrm.evaluation.recommendation import CheckpointFigures, Recommendation
from schemas import HaltedBy

WIDTH = 100
"""Columns where there is no terminal to ask."""

MOST_MOVED = 8
"""Tensors shown of each step of a comparison; --json has all."""

MANY_COLUMNS = 10
"""From so many, a table is set tight."""

_MEBIBYTE = 1024**2
_FIXED_FROM = 1e-3
_FIXED_BELOW = 1e2
"""Numbers from the one to below the other have four decimals; the rest is written with exponent."""

_SHORT_DTYPE = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f64"}


def print_inspection(inspection: Inspection) -> None:
    """Print everything known about one checkpoint."""
    _print(
        _heading(inspection),
        _components_table(inspection),
        _configuration_table(inspection),
        _tensors_table(inspection.tensors),
    )


def print_comparison(comparison: Comparison) -> None:
    """Print what changed, what was measured, and what follows from it."""
    parts: list[RenderableType] = [_checkpoints_table(comparison.checkpoints)]
    for step in comparison.steps:
        parts += [_step_table(step), Text(_step_verdict(step))]
    if comparison.measured:
        parts.append(_measured_table(comparison.data or "", comparison.measured))
    parts.append(Text("\n").join(map(_recommendation, comparison.recommendations)))
    _print(*parts)


def _print(*parts: RenderableType) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for number, part in enumerate(parts):
        if number:
            console.print()
        console.print(part)


def _table(title: str, *columns: str, left: Sequence[int] = (0,)) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        # The tensors' ten columns have room for one space between them.
        padding=(0, int(len(columns) < MANY_COLUMNS), 0, 0),
    )
    for number, column in enumerate(columns):
        # A name may be folded on a narrow screen; a number may not.
        justify, fold = ("left", number == 0) if number in left else ("right", False)
        table.add_column(column, justify=justify, no_wrap=not fold, overflow="fold")  # type: ignore[arg-type]
    return table


def _heading(inspection: Inspection) -> Text:
    training, stored = inspection.training, _mebibytes(inspection.stored_bytes)
    trained = f"{training.pairs:,} known pairs" if training else "no record: no pair is known"
    lines = [
        ("checkpoint", inspection.name),
        ("file", inspection.path),
        ("digest", inspection.digest),
        ("parameters", f"{inspection.parameters:,}"),
        ("puzzles", f"{inspection.puzzles:,}"),
        ("in memory", f"{_mebibytes(inspection.memory_bytes)} as float32"),
        ("on disk", f"{_mebibytes(inspection.file_bytes)}, weights {stored}"),
        (
            "dtypes",
            ", ".join(f"{dtype} {count:,}" for dtype, count in inspection.dtypes.items()),
        ),
        ("training", trained),
    ]
    width = max(len(name) for name, _ in lines)
    parts = [Text.assemble((f"{name:{width}}", "bold"), f"  {value}") for name, value in lines]
    if inspection.nan or inspection.infinite:
        warning = (
            f"{inspection.nan:,} NaN and {inspection.infinite:,} infinite numbers: "
            "this checkpoint is refused where it would be used"
        )
        parts.append(Text(warning, "bold red"))
    text = Text("\n").join(parts)
    # A path stays on its line, so that it can be copied whole.
    text.no_wrap, text.overflow = True, "ignore"
    return text


def _components_table(inspection: Inspection) -> Table:
    table = _table("Components", "", "parameters", "share", "stored")
    for part in inspection.components:
        table.add_row(
            part.component,
            f"{part.parameters:,}",
            _share(part.share),
            _mebibytes(part.stored_bytes),
        )
    return table


def _configuration_table(inspection: Inspection) -> Table:
    table = _table("Configuration", "", "value", "from", left=(0, 2))
    values: Mapping[str, ConfigurationValue] = inspection.model | inspection.conversion
    for name, value in values.items():
        table.add_row(name, f"{value.value}", value.source)
    return table


def _tensors_table(tensors: Mapping[str, TensorStatistics]) -> Table:
    table = _table(
        "Tensors (mean |x|, deviation and range of the finite numbers)",
        *("", "shape", "dtype", "mean |x|", "std", "min", "max", "zeros", "NaN", "Inf"),
    )
    for component, group in groupby(tensors.items(), key=lambda item: item[1].component):
        table.add_row(Text(component, "bold"))
        for key, tensor in group:
            table.add_row(
                f" {_within(key, component)}",
                "x".join(map(str, tensor.shape)),
                _SHORT_DTYPE[tensor.dtype],
                _number(tensor.mean_absolute),
                _number(tensor.standard_deviation),
                _number(tensor.minimum),
                _number(tensor.maximum),
                _share(tensor.sparsity),
                _count(tensor.nan),
                _count(tensor.infinite),
            )
    return table


def _within(key: str, component: Component) -> str:
    """A key without the level that the line above it names."""
    is_level = component in {Component.H_LEVEL, Component.L_LEVEL}
    return key.partition(".")[2] if is_level else key


def _checkpoints_table(checkpoints: Mapping[str, Inspection]) -> Table:
    table = _table("Checkpoints", "", "digest", "parameters", "in memory", "known pairs")
    for label, inspection in checkpoints.items():
        training = inspection.training
        table.add_row(
            label,
            inspection.digest[:12],
            f"{inspection.parameters:,}",
            _mebibytes(inspection.memory_bytes),
            f"{training.pairs:,}" if training else "no record",
        )
    return table


def _step_table(step: StepChange) -> Table:
    table = _table(f"{step.earlier} → {step.later}", "", "moved", "magnitude", "spread")
    everything = TensorChange(
        magnitude_percent=step.magnitude_percent, spread_percent=step.spread_percent, moved=None
    )
    table.add_row("all weights", "", *_changes(everything))
    for key, change in list(step.tensors.items())[:MOST_MOVED]:
        moved = "other shape" if change.moved is None else _share(change.moved)
        table.add_row(f" {key}", moved, *_changes(change))
    if len(step.tensors) > MOST_MOVED:
        table.add_row(f" {len(step.tensors) - MOST_MOVED} that moved less: see --json")
    for key in step.only_earlier:
        table.add_row(f" {key}", "gone")
    for key in step.only_later:
        table.add_row(f" {key}", "new")
    return table


def _changes(change: TensorChange) -> tuple[str, str]:
    return _signed(change.magnitude_percent), _signed(change.spread_percent)


def _step_verdict(step: StepChange) -> str:
    limit = f"{CONVERGED_BELOW:.0%}".replace("%", " %")
    if step.converged is None or step.moved is None:
        return "The networks differ: whether the weights converged cannot be told."
    if step.converged:
        return f"Converged: no tensor moved further than {limit} of its norm."
    return (
        f"Not converged: a tensor moved {_share(step.moved)} of its norm, and the rule is {limit}."
    )


def _measured_table(data: str, measured: Sequence[CheckpointFigures]) -> Table:
    table = _table(
        f"Inference on {data}",
        *("", "halting", "known", "solved", "rate", "95 % interval", "tokens", "Q right", "steps"),
        left=(0, 1),
    )
    for figures in measured:
        solved = figures.solved
        table.add_row(
            figures.checkpoint,
            HaltedBy(figures.halting).value,
            f"{figures.known:,}",
            f"{solved.count:,}/{solved.of:,}",
            _share(solved.share),
            f"{_share(solved.low)} to {_share(solved.high)}",
            _share(figures.token_accuracy),
            _share(figures.q_accuracy),
            f"{figures.mean_act_steps:.1f}",
        )
    return table


def _recommendation(recommendation: Recommendation) -> Text:
    if recommendation.halting is None:
        return Text(f"{recommendation.reason}: give --data-path FILE")
    return Text(f"{recommendation.halting}: {recommendation.reason}")


def _mebibytes(count: int) -> str:
    return f"{count / _MEBIBYTE:,.2f} MiB"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}".replace("%", " %")


def _signed(percent: float | None) -> str:
    return "from zero" if percent is None else f"{percent:+.1f} %"


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _number(value: float | None) -> str:
    """In at most 8 characters, so that ten columns fit."""
    if value is None:
        return "-"
    fixed = value == 0 or _FIXED_FROM <= abs(value) < _FIXED_BELOW
    return f"{value:.4f}" if fixed else f"{value:.1e}"
