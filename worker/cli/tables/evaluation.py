"""An evaluation on the screen: the main figures of its report, in tables of up to 100 columns.

Knows `hrm.evaluation.report.EvaluationReport` and rich; computes nothing but percentages.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hrm.evaluation.report import EvaluationReport, Figures, PositionFigures, PredictionFigures
from hrm.evaluation.statistics import MedianSummary, Share, Summary
from schemas import PromptMatch
from worker.cli.tables.style import interval, number, percent, print_parts, table

AnyFigures = TypeVar("AnyFigures", bound=PredictionFigures)

BAR_WIDTH = 20
"""Characters of a bar for 100 %."""

POSITIONS_PER_ROW = 10
"""The report has every position; a screen has room for groups of ten."""

RELIABILITY = (
    "Reliability: the chance of being solved that q_halt states, and the share solved\n"
    "(the Q head sees the prompt, never the completion: for changed completions, no calibration)"
)
"""Title of the reliability table."""

NO_EXAMPLE = "no example"
"""The row of a group without examples."""


def print_report(report: EvaluationReport) -> None:
    """Print the tables of `report` on stdout."""
    heading = ("", _heading(report))
    if report.overall.examples:
        print_parts(heading, *_parts(report).items())
    else:
        print_parts(heading, ("", NO_EXAMPLE))


def _parts(report: EvaluationReport) -> dict[str, RenderableType]:
    """Titles and contents, in order."""
    groups = "By group"
    if report.by_known is None:
        groups += " (known or unknown: the checkpoint has no record of its training pairs)"
    if report.all_pairs_counted:
        groups += " (all training pairs counted: shares of known examples alone have no interval)"
    baselines = "Beside predictors without a network"
    if report.baselines:
        baselines += f", from {report.baselines[0].fitted_on}"
    return {
        "Result": _result_table(report),
        "Beside the model": _texts(report),
        "By example": _spread_table(report.overall),
        groups: _groups_table(report),
        "Failure patterns": _failures(report),
        RELIABILITY: _reliability_table(report),
        "Tokens right by target position, from 0": _positions_table(report.by_position),
        "Confusion: percentage of each target token that was predicted as each token": _confusion(
            report
        ),
        baselines: _baselines(report),
        **_baselines_apart(report),
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
        f"{setting.device}, {setting.dtype}, batch size {setting.batch_size}",
        # Paths may be long, and one in two pieces cannot be copied: the terminal wraps them.
        no_wrap=True,
    )


def _result_table(report: EvaluationReport) -> Table:
    overall, seconds = report.overall, report.seconds
    made = table("", "", "", left=(0, 2), show_header=False)

    def share(name: str, figure: Share, meaning: str) -> None:
        within = interval(figure)
        if figure.low is not None:
            within = f"95 % interval {within}"
        detail = f"{figure.count:,} of {figure.of:,}, {within}: {meaning}"
        made.add_row(name, percent(figure.share), detail)

    share("solved", overall.solved, "tokens and length right")
    tokens = f"{overall.correct_tokens:,} of {overall.target_tokens:,}"
    made.add_row("tokens right", percent(overall.token_accuracy), tokens)
    share("Q head right", overall.q_right, "(q_halt >= 0) == solved")
    limit = f"of the {report.setting.max_steps} ACT steps that are allowed"
    made.add_row("steps used", percent(overall.efficiency), limit)
    flipped = "examples whose halting preference changed on the way"
    made.add_row("Q flips", f"{overall.flipped:,}", flipped)
    if seconds.per_example is not None:
        by_clock = f"{number(1000 * seconds.per_example)} ms per example, by the clock"
        made.add_row("time", f"{seconds.total:,.1f} s", by_clock)
    return made


def _texts(report: EvaluationReport) -> Text:
    def counts(groups: Mapping[str, Figures]) -> str:
        return ", ".join(f"{name} {figures.examples:,}" for name, figures in groups.items())

    return Text(
        f"text check: {counts(report.by_text)}; "
        f"truncated {report.truncated:,}, {report.unread_words:,} words unread\n"
        f"prompts: {counts(report.by_match)}"
    )


def _spread_table(overall: Figures) -> Table:
    made = table("", "mean", "median", "spread", "min", "max")

    def row(name: str, summary: Summary, scale: float = 1.0) -> None:
        if summary.mean is None:
            made.add_row(name, NO_EXAMPLE)
            return
        median = summary.median if isinstance(summary, MedianSummary) else None
        values = (summary.mean, median, summary.spread, summary.min, summary.max)
        made.add_row(name, *("" if value is None else number(value * scale) for value in values))

    row("share of tokens right", overall.token_accuracy_by_example)
    row("edit similarity", overall.edit_similarity)
    row("ACT steps", overall.act_steps)
    row("ACT steps, solved", overall.act_steps_solved)
    row("q_halt", overall.q_halt)
    row("q_continue", overall.q_continue)
    row("Q flips", overall.q_flips)
    row("ms in engine, waiting included", overall.inference_seconds, 1000)
    return made


_GROUP_COLUMNS = ("tokens", "edit", "steps", "Q right")
"""Share of tokens right, mean edit similarity, mean ACT steps, and share of examples for which the
Q head is right."""


_PARTLY_KNOWN = (PromptMatch.NEAR, PromptMatch.PUZZLE, PromptMatch.NEW)
"""Unknown prompts of which something was trained. Their figures are never mixed."""


def unknown_groups(by_match: Mapping[str, AnyFigures]) -> dict[str, AnyFigures]:
    """The groups of unknown prompts that have examples; none if nothing of any was trained.

    The row of all unknown examples says the same then.
    """
    if not any(by_match[name].examples for name in _PARTLY_KNOWN):
        return {}
    names = (*_PARTLY_KNOWN, PromptMatch.NONE)
    return {name: by_match[name] for name in names if by_match[name].examples}


def _groups_table(report: EvaluationReport) -> Table:
    made = table("", "examples", "solved", "95 % interval", *_GROUP_COLUMNS)
    apart = unknown_groups(report.by_match)
    for group in (report.by_known or {}, apart, report.by_difficulty, report.by_category):
        for name, figures in group.items():
            solved = figures.solved
            if figures.examples:
                cells = (f"{solved.of:,}", percent(solved.share), interval(solved))
                made.add_row(name, *cells, *_group_cells(figures))
            elif group is not report.by_category:  # of which most files lack some
                made.add_row(name, NO_EXAMPLE)
        made.add_section()
    return made


def _group_cells(figures: Figures) -> tuple[str, ...]:
    return (
        percent(figures.token_accuracy),
        number(figures.edit_similarity.mean),
        number(figures.act_steps.mean),
        percent(figures.q_right.share),
    )


def _failures(report: EvaluationReport) -> RenderableType:
    failed = report.overall.examples - report.overall.solved.count
    if not failed:
        return Text("none: every example was solved")
    made = table("", "examples", "of failures", *_GROUP_COLUMNS)
    for name, figures in report.by_failure_pattern.items():
        if figures.examples:
            cells = (f"{figures.examples:,}", percent(figures.examples / failed))
            made.add_row(name, *cells, *_group_cells(figures))
    return made


def _reliability_table(report: EvaluationReport) -> Table:
    made = table("stated", "examples", "mean stated", "solved", "95 % interval")
    for cell in report.reliability:
        if cell.examples:
            made.add_row(
                f"{percent(cell.low, 0)} to {percent(cell.high, 0)}",
                f"{cell.examples:,}",
                percent(cell.mean_predicted),
                percent(cell.solved.share),
                interval(cell.solved),
            )
    return made


def _positions_table(positions: Sequence[PositionFigures]) -> Table:
    made = table("positions", "tokens", "right", "", left=(0, 3))
    for start in range(0, len(positions), POSITIONS_PER_ROW):
        row = positions[start : start + POSITIONS_PER_ROW]
        tokens, correct = sum(cell.tokens for cell in row), sum(cell.correct for cell in row)
        if tokens:
            bar = "█" * round(BAR_WIDTH * correct / tokens)
            name = f"{row[0].position} to {row[-1].position}"
            made.add_row(name, f"{tokens:,}", percent(correct / tokens), bar)
    return made


def _confusion(report: EvaluationReport) -> RenderableType:
    names, predictions = report.confusion.tokens, report.confusion.predictions
    if report.overall.correct_tokens == report.overall.target_tokens:
        return Text("none: every token was right")
    heads = [str(column) if column < len(names) else "≠" for column in range(len(predictions))]
    made = table("target", "count", *heads)
    for target, row in enumerate(report.confusion.counts):
        total = sum(row)
        cells = [
            "·"
            if not count
            else Text(percent(count / total, 0).removesuffix(" %"), _style(target, predicted))
            for predicted, count in enumerate(row)
        ]
        made.add_row(f"{target:2} {names[target]}", f"{total:,}", *cells)
    return made


def _style(target: int, predicted: int) -> str:
    return "green" if target == predicted else "red"


def _baselines(report: EvaluationReport) -> RenderableType:
    if not report.baselines:
        return Text("none: name the training pairs with --train-data")
    columns = ["", "solved", "tokens", "edit"]
    if report.by_known is not None:
        columns += [f"{name}\n{figure}" for name in report.by_known for figure in columns[2:]]
    made = table(*columns)
    checkpoint = (report.setting.checkpoint, report.overall, report.by_known)
    rows = (checkpoint, *((cell.name, cell.overall, cell.by_known) for cell in report.baselines))
    for name, overall, by_known in rows:
        cells = [percent(overall.solved.share)]
        for figures in (overall, *(by_known or {}).values()):
            if figures.examples:
                accuracy, similarity = figures.token_accuracy, figures.edit_similarity.mean
                cells += [percent(accuracy), number(similarity)]
            else:
                cells += [NO_EXAMPLE, ""]
        made.add_row(escape(name), *cells)
    return made


def _baselines_apart(report: EvaluationReport) -> dict[str, RenderableType]:
    """The checkpoint and the baselines on each group of unknown prompts, if they are told apart."""
    groups = unknown_groups(report.by_match)
    if not groups or not report.baselines:
        return {}
    columns = [f"{name}\n{figure}" for name in groups for figure in ("solved", "tokens")]
    made = table("", *columns, gap=2)
    rows: list[tuple[str, Mapping[str, PredictionFigures]]] = [
        (report.setting.checkpoint, report.by_match),
        *((cell.name, cell.by_match) for cell in report.baselines),
    ]
    for name, by_match in rows:
        apart = (by_match[group] for group in groups)
        cells = [
            cell
            for figures in apart
            for cell in (
                f"{figures.solved.count:,}/{figures.solved.of:,}",
                percent(figures.token_accuracy),
            )
        ]
        made.add_row(escape(name), *cells)
    return {"The same on unknown prompts, by what was trained of them": made}
