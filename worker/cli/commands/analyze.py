"""`sqe-hrm analyze`: what a file of SQE messages or HRM examples holds."""

from collections.abc import Mapping
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hrm.data.analysis import DatasetStatistics, analyze_file
from hrm.data.config import WordHash
from hrm.data.vocabulary import VOCABULARY, Tokenizer
from schemas import MAX_SEQUENCE_LENGTH, Difficulty
from worker.cli.files import read_with_progress, refused_line_printer
from worker.cli.options import data_path_option, json_option, word_hash_option

BAR_WIDTH = 8
"""Characters of the longest bar: both token histograms fit side by side in 80 columns."""


@click.command("analyze")
@data_path_option()
@word_hash_option
@json_option
def command(data_path: Path, word_hash: WordHash, as_json: bool) -> None:  # noqa: FBT001
    """Count a file's messages, lengths, difficulties, categories and tokens.

    A line that is neither a message nor an example is reported on stderr with its number.
    """
    with read_with_progress(data_path, "Analyzing") as source:
        statistics = analyze_file(
            source, Tokenizer(word_hash), on_refused=refused_line_printer(data_path)
        )
    if as_json:
        click.echo(statistics.model_dump_json(indent=2))
        return
    console = Console()
    console.print(
        _lines_table(data_path, statistics),
        _lengths_table(statistics),
        _shares_table("Difficulty", statistics.difficulties),
        _shares_table("Category", _categories(statistics)),
        _tokens_table(statistics),
        sep="\n",
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def _lines_table(data_path: Path, statistics: DatasetStatistics) -> Table:
    table = _table(escape(str(data_path)), "lines", "count")
    table.add_row("messages", f"{statistics.messages:,}")
    table.add_row("converted examples", f"{statistics.examples:,}")
    table.add_row("refused", f"{sum(statistics.refused.values()):,}")
    for reason, count in statistics.refused.items():
        table.add_row(f"  {reason}", f"{count:,}")
    return table


def _lengths_table(statistics: DatasetStatistics) -> Table:
    table = _table(
        "Lengths", "", "mean characters", "mean tokens", "cut", f"of {MAX_SEQUENCE_LENGTH} tokens"
    )
    for name, side in (("input", statistics.inputs), ("target", statistics.targets)):
        cut = f"{side.cut:,}" if statistics.messages else "unknown"
        means = (_mean(side.mean_characters), _mean(side.mean_tokens))
        table.add_row(name, *means, cut, f"{side.full:,}")
    return table


def _mean(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _categories(statistics: DatasetStatistics) -> dict[str, int]:
    counts: dict[str, int] = {str(name): count for name, count in statistics.categories.items()}
    if statistics.examples:
        counts["unknown: an example has none"] = statistics.examples
    return counts


def _shares_table(title: str, counts: Mapping[Difficulty, int] | Mapping[str, int]) -> Table:
    table = _table(title, "", "count", "share")
    table.add_column("")
    total = sum(counts.values())
    for name, count in counts.items():
        table.add_row(name, f"{count:,}", *_share(count, total, max(counts.values())))
    return table


def _tokens_table(statistics: DatasetStatistics) -> Table:
    table = _table("Tokens", "")
    sides = (statistics.inputs.token_counts, statistics.targets.token_counts)
    for name in ("input", "target"):
        table.add_column(name, justify="right")
        table.add_column("share", justify="right")
        table.add_column("")
    for token, name in enumerate(VOCABULARY):
        cells = [f"{token:2} {name}"]
        for counts in sides:
            cells += [f"{counts[token]:,}", *_share(counts[token], sum(counts), max(counts))]
        table.add_row(*cells)
    return table


def _share(count: int, total: int, most: int) -> tuple[str, str]:
    """A count's percentage, and its bar beside the longest."""
    if not count:
        return "0.0 %", ""
    return f"{count / total:.1%}".replace("%", " %"), "█" * max(1, round(BAR_WIDTH * count / most))
