"""An analysed file on the screen: its lines, lengths, categories and tokens.

Knows `hrm.data.analysis.DatasetStatistics` and rich; counts nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hrm.data.analysis import DatasetStatistics
from hrm.data.config import ENOUGH_PROMPTS
from hrm.data.vocabulary import Vocabulary
from schemas import MAX_SEQUENCE_LENGTH, Difficulty
from worker.cli.tables.style import number, percent, print_parts, table

BAR_WIDTH = 8
"""Characters of the longest bar: both token histograms fit side by side in 80 columns."""


def print_statistics(
    data_path: Path, statistics: DatasetStatistics, vocabulary: Vocabulary
) -> None:
    """Print the tables of `statistics`, counted in the file `data_path`, on stdout."""
    print_parts(
        (str(data_path), _lines_table(statistics)),
        ("Lengths", _lengths_table(statistics)),
        ("Difficulty", _shares_table(statistics.difficulties)),
        ("Category", _shares_table(_categories(statistics))),
        ("Tasks", _tasks_table(statistics)),
        ("Tokens", _tokens_table(statistics, vocabulary)),
    )


def _lines_table(statistics: DatasetStatistics) -> Table:
    made = table("lines", "count")
    made.add_row("messages", f"{statistics.messages:,}")
    made.add_row("converted examples", f"{statistics.examples:,}")
    made.add_row("refused", f"{sum(statistics.refused.values()):,}")
    for reason, count in statistics.refused.items():
        made.add_row(f"  {reason}", f"{count:,}")
    return made


def _lengths_table(statistics: DatasetStatistics) -> Table:
    made = table(
        "",
        "mean characters",
        "mean tokens",
        "cut",
        f"{MAX_SEQUENCE_LENGTH} tokens or more",
        "parts",
    )
    for name, side in (("input", statistics.inputs), ("target", statistics.targets)):
        cut = f"{side.cut:,}" if statistics.messages else "unknown"
        means = (number(side.mean_characters), number(side.mean_tokens))
        made.add_row(name, *means, cut, f"{side.full:,}", f"{side.parts:,}")
    return made


def _categories(statistics: DatasetStatistics) -> dict[str, int]:
    counts: dict[str, int] = {str(name): count for name, count in statistics.categories.items()}
    if statistics.examples:
        counts["unknown: an example has none"] = statistics.examples
    return counts


def _shares_table(counts: Mapping[Difficulty, int] | Mapping[str, int]) -> Table:
    made = table("", "count", "share", "", left=(0, 3))
    total = sum(counts.values())
    for name, count in counts.items():
        made.add_row(name, f"{count:,}", *_share(count, total, max(counts.values())))
    return made


def _tasks_table(statistics: DatasetStatistics) -> RenderableType:
    if not statistics.tasks and not statistics.found_tasks:
        return Text("none is named, and none was found")
    made = table(f"a new prompt is judged from {ENOUGH_PROMPTS} on", "prompts")
    for name, count in statistics.tasks.items():
        made.add_row(escape(name), f"{count:,}")
    for found in statistics.found_tasks:
        made.add_row(f"found: {escape(found.template)}", f"{found.prompts:,}")
    return made


def _tokens_table(statistics: DatasetStatistics, vocabulary: Vocabulary) -> Table:
    made = table("", "input", "share", "", "target", "share", "", left=(0, 3, 6))
    sides = [
        _grouped(side.token_counts, vocabulary) for side in (statistics.inputs, statistics.targets)
    ]
    for token, name in enumerate(vocabulary.groups):
        cells = [f"{token:2} {name}" if name in vocabulary.names else f"{vocabulary.hashed} {name}"]
        for counts in sides:
            cells += [f"{counts[token]:,}", *_share(counts[token], sum(counts), max(counts))]
        made.add_row(*cells)
    return made


def _grouped(token_counts: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """The counts of the named tokens, and of all hashed ones together."""
    named = len(vocabulary.names)
    return [*token_counts[:named], *([sum(token_counts[named:])] if vocabulary.hashed else [])]


def _share(count: int, total: int, most: int) -> tuple[str, str]:
    """A count's percentage, and its bar beside the longest."""
    if not count:
        return percent(0), ""
    return percent(count / total), "█" * max(1, round(BAR_WIDTH * count / most))
