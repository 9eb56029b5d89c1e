"""An ensemble beside its members on the screen, in a table of up to 100 columns.

Knows `hrm.ensemble.report.EnsembleReport` and rich; computes no figure.
"""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hrm.ensemble.report import EnsembleReport
from hrm.evaluation.report import EvaluationReport
from schemas import PromptMatch
from worker.cli.tables.evaluation import NO_EXAMPLE, unknown_groups
from worker.cli.tables.paired import differing, pairs_table, pairs_title
from worker.cli.tables.style import interval, number, percent, print_parts, table

_COLUMNS = ("solved", "95 % interval", "tokens", "edit", "Q right", "steps", "ms each")
"""Solved examples and their interval, share of tokens right, mean edit similarity, share of
examples for which the Q head is right, mean ACT steps, and milliseconds per example."""


def print_ensemble(report: EnsembleReport) -> None:
    """Print `report` on stdout."""
    parts: list[tuple[str, RenderableType]] = [("", _heading(report)), ("", _table(report))]
    if apart := _apart(report):
        parts.append(("By what was trained of the prompts", apart))
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


def _apart(report: EnsembleReport) -> Table | None:
    """Who solves how many of which prompts, if some are unknown and something of them is trained.

    Members may have trained different things of them.
    """
    named = [*((_name(member), member) for member in report.members), ("ensemble", report.ensemble)]
    if not any(unknown_groups(each.by_match) for _, each in named):
        return None
    groups = [
        match for match in PromptMatch if any(each.by_match[match].examples for _, each in named)
    ]
    made = table("", *(match.value for match in groups))
    for name, each in named:
        shares = (each.by_match[match].solved for match in groups)
        made.add_row(Text(name), *(f"{share.count:,}/{share.of:,}" for share in shares))
    return made


def _name(member: EvaluationReport) -> str:
    # Steps of two runs have the same names.
    return f"{member.setting.checkpoint} ({member.setting.checkpoint_digest[:6]})"


def _table(report: EnsembleReport) -> Table:
    made = table("", *_COLUMNS)
    for member in report.members:
        made.add_row(Text(_name(member)), *_cells(member))
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
