"""Two checkpoints on the same messages, as a table with a row for each two.

Knows `hrm.evaluation.outcomes.PairedFigures` and rich; computes nothing.
"""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from hrm.evaluation.outcomes import PairedFigures
from worker.cli.tables.style import ALL_COUNTED, signed_percent, table

NAMES_SHOWN = 5
"""Messages named for each list of those that only one checkpoint solved; --json has more."""


def pairs_title(repeats: int) -> str:
    """The title of `pairs_table`, for a file in which `repeats` lines repeat earlier ones."""
    title = "On the same messages"
    return f"{title}, without {repeats:,} that repeat an earlier one" if repeats else title


def pairs_table(pairs: Sequence[PairedFigures]) -> Table:
    """For each two: who solved what alone, the test of it, and the difference in tokens."""
    made = table(
        *("", "halting", "only first", "only second", "p", "token diff.", "95 % interval"),
        left=(0, 1),
        gap=2,
    )
    for pair in pairs:
        made.add_row(
            Text(f"{pair.first} / {pair.second}"),
            pair.halting.value,
            f"{pair.only_first:,}",
            f"{pair.only_second:,}",
            f"{pair.adjusted_p_value:.2g}",
            signed_percent(100 * pair.token_difference, 2),
            _interval(pair),
        )
    return made


def differing(pairs: Sequence[PairedFigures]) -> Text:
    """The first messages that only one of each two solved."""
    lines = [
        f"{pair.halting}: solved by {name} and not by {other}: {_shortened(names, count)}"
        for pair in pairs
        for name, other, names, count in (
            (pair.first, pair.second, pair.only_first_names, pair.only_first),
            (pair.second, pair.first, pair.only_second_names, pair.only_second),
        )
        if count
    ]
    return Text("\n".join(lines) or "All solve the same messages.")


def _shortened(names: Sequence[str], count: int) -> str:
    shown = names[:NAMES_SHOWN]
    more = count - len(shown)
    return ", ".join(shown) + (f" and {more:,} more: see --json" if more else "")


def _interval(pair: PairedFigures) -> str:
    if pair.token_low is None or pair.token_high is None:
        return ALL_COUNTED
    ends = (signed_percent(100 * end, 2) for end in (pair.token_low, pair.token_high))
    return " to ".join(ends)
