"""An evaluation on the screen: the essential of its report, in tables of up to 100 columns.

Knows the report and rich; computes nothing but percentages.
"""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hrm.evaluation.report import EvaluationReport, Figures, PositionFigures
from hrm.evaluation.statistics import MedianSummary, Share, Summary

WIDTH = 100
"""Columns where there is no terminal to ask."""

BAR_WIDTH = 20
"""Characters of a bar for 100 %."""

POSITIONS_PER_ROW = 10
"""The report has every position; a screen has room for tens."""

NOTHING = "no example"


def print_report(report: EvaluationReport) -> None:
    """Print the tables of `report` on stdout."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    # Paths may be long, and one in two pieces cannot be copied: the terminal wraps them.
    console.print(_heading(report), soft_wrap=True)
    if not report.overall.examples:
        console.print(NOTHING)
        return
    for title, content in _parts(report).items():
        # Not the table's own title, which would be wrapped at the table's width.
        console.print(Text(title, "bold"), soft_wrap=True)
        console.print(content, "", sep="\n")


def _parts(report: EvaluationReport) -> dict[str, RenderableType]:
    """Title and content of each."""
    groups = "By group"
    if report.by_known is None:
        groups += " (known or unknown: the checkpoint has no record of its training pairs)"
    guesses = "Beside guesses that never look at the input"
    if report.baselines:
        guesses += f", counted from {report.baselines[0].fitted_on}"
    return {
        "Result": _result_table(report),
        "By example": _spread_table(report.overall),
        groups: _groups_table(report),
        "Failure patterns": _failures(report),
        "Reliability: the chance of being solved that q_halt states, and what became of it": (
            _reliability_table(report)
        ),
        "Tokens right by target position, from 0": _positions_table(report.by_position),
        "Confusion: of each target token, how many % were predicted as": _confusion(report),
        guesses: _baselines(report),
    }


def _heading(report: EvaluationReport) -> Text:
    setting, lines = report.setting, report.lines
    refused = sum(lines.refused.values())
    return Text(
        f"{setting.checkpoint} ({setting.checkpoint_digest[:12]}) on {report.data}\n"
        f"{lines.messages:,} messages and {lines.examples:,} converted examples evaluated, "
        f"{refused:,} refused\n"
        f"halting {setting.halting}, at most {setting.max_steps} steps "
        f"(trained: {setting.trained_max_steps}); "
        f"{setting.device}, {setting.dtype}, batch size {setting.batch_size}\n"
    )


def _result_table(report: EvaluationReport) -> Table:
    overall, seconds = report.overall, report.seconds
    table = _table("", "", show_header=False)
    table.add_column("")

    def share(name: str, figure: Share, meaning: str) -> None:
        detail = (
            f"{figure.count:,} of {figure.of:,}, 95 % interval {_interval(figure)} %: {meaning}"
        )
        table.add_row(name, _percent(figure.share), detail)

    share("solved", overall.solved, "every target token right")
    tokens = f"{overall.correct_tokens:,} of {overall.target_tokens:,}"
    table.add_row("tokens right", _percent(overall.token_accuracy), tokens)
    share("Q head right", overall.q_right, "(q_halt >= 0) == solved")
    limit = f"of the {report.setting.max_steps} ACT steps that are allowed"
    table.add_row("steps used", _percent(overall.efficiency), limit)
    flipped = "examples whose halting preference changed on the way"
    table.add_row("Q flips", f"{overall.flipped:,}", flipped)
    if seconds.per_example is not None:
        by_clock = f"{_number(1000 * seconds.per_example)} ms an example, by the clock"
        table.add_row("time", f"{seconds.total:,.1f} s", by_clock)
    return table


def _spread_table(overall: Figures) -> Table:
    table = _table("", "mean", "median", "spread", "min", "max")

    def row(name: str, summary: Summary, scale: float = 1.0) -> None:
        if summary.mean is None:
            table.add_row(name, NOTHING)
            return
        median = summary.median if isinstance(summary, MedianSummary) else None
        values = (summary.mean, median, summary.spread, summary.min, summary.max)
        table.add_row(name, *("" if value is None else _number(value * scale) for value in values))

    row("share of tokens right", overall.token_accuracy_by_example)
    row("edit similarity", overall.edit_similarity)
    row("ACT steps", overall.act_steps)
    row("ACT steps, solved", overall.act_steps_solved)
    row("q_halt", overall.q_halt)
    row("q_continue", overall.q_continue)
    row("Q flips", overall.q_flips)
    row("ms in engine, waiting included", overall.inference_seconds, 1000)
    return table


_GROUP_COLUMNS = ("tokens", "edit", "steps", "Q right")
"""Tokens right, mean edit similarity, mean ACT steps, and how often the Q head was right."""


def _groups_table(report: EvaluationReport) -> Table:
    table = _table("", "examples", "solved", "95 % interval", *_GROUP_COLUMNS)
    for group in (report.by_known or {}, report.by_difficulty, report.by_category):
        for name, figures in group.items():
            solved = figures.solved
            if figures.examples:
                cells = (f"{solved.of:,}", _percent(solved.share), _interval(solved))
                table.add_row(name, *cells, *_group_cells(figures))
            elif group is not report.by_category:  # of which most files lack some
                table.add_row(name, NOTHING)
        table.add_section()
    return table


def _group_cells(figures: Figures) -> tuple[str, ...]:
    return (
        _percent(figures.token_accuracy),
        _number(figures.edit_similarity.mean),
        _number(figures.act_steps.mean),
        _percent(figures.q_right.share),
    )


def _failures(report: EvaluationReport) -> RenderableType:
    failed = report.overall.examples - report.overall.solved.count
    if not failed:
        return Text(" none: every example was solved")
    table = _table("", "examples", "of failures", *_GROUP_COLUMNS)
    for name, figures in report.by_failure_pattern.items():
        if figures.examples:
            cells = (f"{figures.examples:,}", _percent(figures.examples / failed))
            table.add_row(name, *cells, *_group_cells(figures))
    return table


def _reliability_table(report: EvaluationReport) -> Table:
    table = _table("stated", "examples", "mean stated", "solved", "95 % interval")
    for cell in report.reliability:
        if cell.examples:
            table.add_row(
                f"{cell.low:.0%} to {cell.high:.0%}".replace("%", " %"),
                f"{cell.examples:,}",
                _percent(cell.mean_predicted),
                _percent(cell.solved.share),
                _interval(cell.solved),
            )
    return table


def _positions_table(positions: Sequence[PositionFigures]) -> Table:
    table = _table("positions", "tokens", "right")
    table.add_column("")
    for start in range(0, len(positions), POSITIONS_PER_ROW):
        row = positions[start : start + POSITIONS_PER_ROW]
        tokens, correct = sum(cell.tokens for cell in row), sum(cell.correct for cell in row)
        if tokens:
            bar = "█" * round(BAR_WIDTH * correct / tokens)
            name = f"{row[0].position} to {row[-1].position}"
            table.add_row(name, f"{tokens:,}", _percent(correct / tokens), bar)
    return table


def _confusion(report: EvaluationReport) -> RenderableType:
    names, counts = report.confusion.tokens, report.confusion.counts
    if report.overall.correct_tokens == report.overall.target_tokens:
        return Text(" none: every token was right")
    table = _table("target", "count", *map(str, range(len(names))))
    for target, row in enumerate(counts):
        total = sum(row)
        cells = [
            "·" if not count else Text(f"{100 * count / total:.0f}", _style(target, predicted))
            for predicted, count in enumerate(row)
        ]
        table.add_row(f"{target:2} {names[target]}", f"{total:,}", *cells)
    return table


def _style(target: int, predicted: int) -> str:
    return "green" if target == predicted else "red"


def _baselines(report: EvaluationReport) -> RenderableType:
    if not report.baselines:
        return Text(" none: name the training pairs with --train-data")
    columns = ["", "solved", "tokens", "edit"]
    if report.by_known is not None:
        columns += [f"{name}\n{figure}" for name in report.by_known for figure in columns[2:]]
    table = _table(*columns)
    checkpoint = (report.setting.checkpoint, report.overall, report.by_known)
    rows = (checkpoint, *((cell.name, cell.overall, cell.by_known) for cell in report.baselines))
    for name, overall, by_known in rows:
        cells = [_percent(overall.solved.share)]
        for figures in (overall, *(by_known or {}).values()):
            if figures.examples:
                accuracy, similarity = figures.token_accuracy, figures.edit_similarity.mean
                cells += [_percent(accuracy), _number(similarity)]
            else:
                cells += [NOTHING, ""]
        table.add_row(escape(name), *cells)
    return table


def _table(*columns: str, show_header: bool = True) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, show_header=show_header)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def _percent(share: float | None) -> str:
    """With one digit; 0 and 100 only where it is exactly that."""
    if share is None:
        return NOTHING
    shown = round(100 * share, 1)
    if 0 < share < 1:
        shown = min(max(shown, 0.1), 99.9)
    return f"{shown:.1f} %"


def _interval(share: Share) -> str:
    if share.low is None or share.high is None:
        return ""
    return f"{100 * share.low:.1f} to {100 * share.high:.1f}"


def _number(value: float | None) -> str:
    """Three digits, or all before the point."""
    if value is None:
        return NOTHING
    if abs(value) >= 100:  # noqa: PLR2004 - has three digits before the point
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value else "0"
