"""How every table looks, and how every number in it is written.

Knows rich and `Share`; nothing of what is shown.
"""

import math
from collections.abc import Collection

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from hrm.evaluation.statistics import Share

WIDTH = 100
"""Columns when the output is not a terminal, which would have a width of its own."""

NOTHING = "-"
"""A cell without a value."""


ALL_COUNTED = "all counted"
"""In place of an interval, for a share of everything there is."""


def print_parts(*parts: tuple[str, RenderableType]) -> None:
    """Print titles and contents on stdout, with a blank line between two parts.

    An empty title is left out. A `Text` that is not to be wrapped is printed as it is, at any
    length, so that a path in it can be copied.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for index, (title, content) in enumerate(parts):
        if index:
            console.print()
        if title:
            # Not the table's own title, which would be wrapped at the table's width.
            console.print(Text(title, "bold"), soft_wrap=True)
        console.print(content, soft_wrap=isinstance(content, Text) and bool(content.no_wrap))


def table(
    *columns: str,
    left: Collection[int] = (0,),
    gap: int = 3,
    show_header: bool = True,
) -> Table:
    """An empty table in the style of this program.

    Args:
        columns: The headings.
        left: Numbers of the columns with text, aligned to the left; the others have figures.
        gap: Spaces between two columns.
        show_header: Whether to print the headings.
    """
    made = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        show_header=show_header,
        pad_edge=False,
        padding=(0, gap - 1, 0, 0),
    )
    for index, column in enumerate(columns):
        # A name may be folded on a narrow screen; a figure may not.
        made.add_column(
            column,
            justify="left" if index in left else "right",
            no_wrap=index > 0,
            overflow="fold",
        )
    return made


def percent(share: float | None, digits: int = 1) -> str:
    """`share` of 1 in percent. Only exactly 0 and 1 are written as 0 and 100."""
    return NOTHING if share is None else f"{_rounded(100 * share, digits):.{digits}f} %"


def signed_percent(percentage: float, digits: int = 1) -> str:
    """A change in percent, with its sign. Only what did not change is written as 0."""
    return f"{_rounded(percentage, digits):+.{digits}f} %"


def interval(share: Share, digits: int = 1) -> str:
    """The 95 % interval of `share` in percent, or that it has none because all was counted."""
    if share.low is None or share.high is None:
        return ALL_COUNTED if share.of else NOTHING
    low, high = (_rounded(100 * end, digits) for end in (share.low, share.high))
    return f"{low:.{digits}f} to {high:.{digits}f} %"


def number(value: float | None, digits: int = 3) -> str:
    """`value` with this many significant digits, or with all that are before the point."""
    if value is None:
        return NOTHING
    if not value:
        return "0"
    # A number that is rounded up to a whole one ends with the point.
    short = f"{value:#.{digits}g}".removesuffix(".")
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else short


def _rounded(percentage: float, digits: int) -> float:
    """`percentage` rounded, but to 0 or 100 (of either sign) only if it is exactly that."""
    size = abs(percentage)
    rounded = round(size, digits)
    if rounded in {0, 100} and size != rounded:
        rounded += math.copysign(10**-digits, size - rounded)
    return math.copysign(rounded, percentage) if rounded else 0.0
