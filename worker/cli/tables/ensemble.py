"""An ensemble beside its members on the screen, in a table of up to 100 columns.

Knows `hrm.ensemble.report.EnsembleReport` and rich; computes no figure.
"""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hrm.ensemble.report import EnsembleReport
from hrm.evaluation.report import EvaluationReport

WIDTH = 100
"""Columns where there is no terminal to ask."""

NOTHING = "no example"

_COLUMNS = ("solved", "95 % interval", "tokens", "edit", "Q right", "steps", "ms each")
"""Tokens right, mean edit similarity, how often the Q head was right, mean ACT steps, and
milliseconds by the clock for an example."""


def print_ensemble(report: EnsembleReport) -> None:
    """Print `report` on stdout."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    # Paths may be long, and one in two pieces cannot be copied: the terminal wraps them.
    console.print(_heading(report), soft_wrap=True)
    console.print(_table(report), "", sep="\n")
    if report.recommendation is not None:
        console.print(Text(report.recommendation.reason), soft_wrap=True)


def _heading(report: EnsembleReport) -> Text:
    together = report.ensemble
    setting, lines = together.setting, together.lines
    weights = " + ".join(
        f"{weight:.3g} {member.setting.checkpoint}"
        for weight, member in zip(report.weights, report.members, strict=True)
    )
    text = (
        f"{setting.checkpoint} ({setting.checkpoint_digest[:12]}) on {together.data}\n"
        f"{report.strategy} of {weights}\n"
    )
    calibration = report.calibration
    if calibration is not None:
        text += f"combiner fitted on {calibration.examples:,} examples of {calibration.data}"
        if calibration.left_out is None:
            text += ", before: whether this data has some of them, nothing here tells\n"
        else:
            text += f"; {calibration.left_out:,} left out, which this data has too\n"
    return Text(
        f"{text}{together.overall.examples:,} examples evaluated, "
        f"{sum(lines.refused.values()):,} refused\n"
        f"halting {setting.halting}, at most {setting.max_steps} steps; "
        f"{setting.device}, {setting.dtype}, batch size {setting.batch_size}\n"
    )


def _table(report: EnsembleReport) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("", overflow="fold")
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for member in report.members:
        setting = member.setting
        # Steps of two runs have the same names.
        name = f"{setting.checkpoint} ({setting.checkpoint_digest[:6]})"
        table.add_row(Text(name), *_cells(member))
    table.add_section()
    table.add_row(Text("ensemble", "bold"), *_cells(report.ensemble))
    return table


def _cells(report: EvaluationReport) -> tuple[str, ...]:
    overall, solved, milliseconds = report.overall, report.overall.solved, 0.0
    if not overall.examples or solved.low is None or solved.high is None:
        return (NOTHING,)
    if report.seconds.per_example is not None:
        milliseconds = 1000 * report.seconds.per_example
    return (
        f"{solved.count:,} of {solved.of:,}",
        f"{100 * solved.low:.1f} to {100 * solved.high:.1f} %",
        f"{100 * (overall.token_accuracy or 0.0):.2f} %",
        f"{overall.edit_similarity.mean:.4f}",
        f"{100 * (overall.q_right.share or 0.0):.1f} %",
        f"{overall.act_steps.mean:.2f}",
        f"{milliseconds:,.1f}",
    )
