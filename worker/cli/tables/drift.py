"""A drift test on the screen: the changes that were missed, the false alarms, and examples.

Knows `hrm.evaluation.drift.DriftReport` and rich; counts nothing.
"""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from hrm.evaluation.drift import ChangeExample, DriftReport, KindFigures
from schemas import PromptMatch
from worker.cli.tables.style import NOTHING, percent, print_parts, table


def print_drift(report: DriftReport) -> None:
    """Print the tables of `report` on stdout, and its examples if it has any."""
    changed = [figures for figures in report.kinds if not figures.harmless]
    harmless = [figures for figures in report.kinds if figures.harmless]
    print_parts(
        ("", _heading(report)),
        ("Changed answers that were missed", _kinds_table(changed)),
        ("Harmless changes that raised a false alarm", _kinds_table(harmless)),
        *_examples(report),
    )


def _heading(report: DriftReport) -> Text:
    setting, lines = report.setting, report.lines
    unknown = "unknown"
    if lines.unknown_by_match.keys() - {PromptMatch.NONE}:
        matches = (f"{name} {count:,}" for name, count in lines.unknown_by_match.items())
        unknown += f" ({', '.join(matches)})"
    apart = {
        "known with an alarm unchanged": lines.alarming,
        unknown: lines.unknown,
        "converted": lines.converted,
        "refused": sum(lines.refused.values()),
    }
    others = "; not tested: " + ", ".join(
        f"{count:,} {name}" for name, count in apart.items() if count
    )
    return Text(
        f"{setting.checkpoint} ({setting.checkpoint_digest[:12]}) on {report.data}\n"
        f"known messages tested: {lines.tested:,}{others if any(apart.values()) else ''}\n"
        f"halting {setting.halting}, at most {setting.max_steps} steps; {setting.device}, "
        f"{setting.dtype}, batch size {setting.batch_size}; seed {report.seed}, at most "
        f"{report.changes_per_kind:,} changes of each kind",
        no_wrap=True,
    )


def _kinds_table(kinds: list[KindFigures]) -> Table:
    made = table("", "places", "changes", "by the model", "", "by the text check", "")
    for figures in kinds:
        made.add_row(
            _name(figures),
            f"{figures.places:,}",
            f"{figures.changes:,}",
            *_wrong(figures.model_wrong, figures.changes),
            *_wrong(figures.text_wrong, figures.text_checked),
        )
    return made


def _wrong(wrong: int, of: int) -> tuple[str, str]:
    """A number of wrong judgements, and its share."""
    return (f"{wrong:,}", percent(wrong / of)) if of else (NOTHING, NOTHING)


def _name(figures: KindFigures) -> str:
    return figures.kind.replace("_", " ")


def _examples(report: DriftReport) -> Iterator[tuple[str, Text]]:
    for figures in report.kinds:
        if figures.examples:
            wrong = "False alarms of" if figures.harmless else "Missed by"
            lines = Text("\n").join(map(_example, figures.examples))
            lines.no_wrap = True
            yield f"{wrong} the model: {_name(figures)}", lines


def _example(example: ChangeExample) -> Text:
    line = Text(f"{example.message_id}, word {example.word} of {example.words}: ", no_wrap=True)
    line.append(f"…{_printable(example.before)}")
    line.append(f"[{_printable(example.old)} → {_printable(example.new)}]", "bold")
    line.append(f"{_printable(example.after)}…")
    return line


def _printable(text: str) -> str:
    """`text` on one line, without characters that a terminal would obey."""
    return "".join("⏎" if char == "\n" else char if char.isprintable() else "·" for char in text)
