"""An ensemble beside its members on the screen, in a table of up to 100 columns.

Knows `hrm.ensemble.report.EnsembleReport` and rich; computes no figure.
"""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hrm.ensemble.report import EnsembleReport
from hrm.evaluation.report import EvaluationReport
from worker.cli.tables.evaluation import NO_EXAMPLE
from worker.cli.tables.paired import differing, pairs_table, pairs_title
from worker.cli.tables.style import interval, number, percent, print_parts, table

_COLUMNS = ("solved", "95 % interval", "tokens", "edit", "Q right", "steps", "ms each")
"""Solved examples and their interval, share of tokens right, mean edit similarity, share of
examples for which the Q head is right, mean ACT steps, and milliseconds per example."""


def print_ensemble(report: EnsembleReport) -> None:
    """Print `report` on stdout."""
    parts: list[tuple[str, RenderableType]] = [("", _heading(report)), ("", _table(report))]
    if report.recommendation is not None:
        parts.append((pairs_title(report.repeated_lines), pairs_table(report.pairs)))
        parts.append(("", differing(report.pairs)))
        parts.append(("", Text(report.recommendation.reason, no_wrap=True)))
    print_parts(*parts)


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
            text += ", in an earlier call: this data may contain some of them\n"
        else:
            text += f"; {calibration.left_out:,} left out because this data contains them too\n"
    return Text(
        f"{text}{together.overall.examples:,} examples evaluated, "
        f"{sum(lines.refused.values()):,} refused\n"
        f"halting {setting.halting}, at most {setting.max_steps} steps; "
        f"{setting.device}, {setting.dtype}, batch size {setting.batch_size}",
        # Paths may be long, and one in two pieces cannot be copied: the terminal wraps them.
        no_wrap=True,
    )


def _table(report: EnsembleReport) -> Table:
    made = table("", *_COLUMNS)
    for member in report.members:
        setting = member.setting
        # Steps of two runs have the same names.
        name = f"{setting.checkpoint} ({setting.checkpoint_digest[:6]})"
        made.add_row(Text(name), *_cells(member))
    made.add_section()
    made.add_row(Text("ensemble", "bold"), *_cells(report.ensemble))
    return made


def _cells(report: EvaluationReport) -> tuple[str, ...]:
    overall, seconds = report.overall, report.seconds.per_example
    if not overall.examples:
        return (NO_EXAMPLE,)
    return (
        f"{overall.solved.count:,} of {overall.solved.of:,}",
        interval(overall.solved),
        percent(overall.token_accuracy, 2),
        number(overall.edit_similarity.mean, 4),
        percent(overall.q_right.share),
        number(overall.act_steps.mean, 4),
        number(None if seconds is None else 1000 * seconds),
    )
