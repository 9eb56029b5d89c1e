"""The display of a demo run: live in a terminal, a line every few seconds elsewhere, a summary.

Knows how a tally is shown; nothing of where its counts come from.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from worker.demo.tally import Account, Tally, percentile
from worker.demo.traffic import CHANGES, Kind

LINE_SECONDS = 5.0
"""Time between two lines if there is no terminal."""

REFRESH_PER_SECOND = 4
"""Refreshes of the live view: often enough to look live, seldom enough to spare the processor."""


@contextlib.contextmanager
def live_view(console: Console, title: str, seconds: float) -> Iterator[Callable[[Tally], None]]:
    """Yield a function that shows a tally.

    Args:
        console: Where to show it.
        title: Title of the live view.
        seconds: Duration of the run; may be infinite.
    """
    if not console.is_terminal:
        yield _line_printer(console)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        shown = 0.0

        def show(tally: Tally) -> None:
            nonlocal shown
            if time.monotonic() - shown >= 1 / REFRESH_PER_SECOND:
                shown = time.monotonic()
                live.update(Panel(_body(tally), title=_clock(title, tally, seconds)), refresh=True)

        yield show


def summary(tally: Tally, account: Account) -> RenderableType:
    """Build the summary of a run: its figures, and whether its counts add up."""
    check = Text("every message has one outcome, and all counts agree", style="green")
    if not account.adds_up:
        check = Text("the counts do not agree", style="bold red")
    counts = _table("counted by", 0)
    for name in ("sent", "verdicts", "dead letters"):
        counts.add_column(name, justify="right", no_wrap=True)
    rows = (
        ("the agent", account.sent, account.verdicts, account.dead_letters),
        ("the worker's /metrics", "", account.evaluations_total, account.rejected_total),
        ("the monitor's /metrics", "", account.of_agents, ""),
        ("the dead-letter stream", "", "", account.stream_length),
    )
    for row in rows:
        counts.add_row(*map(str, row))
    return Group(_body(tally), Text(), counts, check)


def _line_printer(console: Console) -> Callable[[Tally], None]:
    printed = time.monotonic()

    def show(tally: Tally) -> None:
        nonlocal printed
        if time.monotonic() - printed < LINE_SECONDS:
            return
        printed = time.monotonic()
        console.print(
            f"{printed - tally.started:4.0f} s  {tally.answered} answered, "
            f"{tally.recent_rate:.1f} a second, known: {_rate(tally.solve_rate(Kind.KNOWN))} "
            f"solved, changed: {_rate(tally.missed)} missed, refused {tally.rejections.total()}",
            highlight=False,
            soft_wrap=True,
        )

    return show


def _clock(title: str, tally: Tally, seconds: float) -> str:
    passed = time.monotonic() - tally.started
    if math.isinf(seconds):
        return f"{title} · {passed:.0f} s · Ctrl-C ends"
    return f"{title} · {min(passed, seconds):.0f} of {seconds:g} s"


def _body(tally: Tally) -> RenderableType:
    columns = Table.grid(padding=(0, 3, 0, 0))
    columns.add_row(_solved(tally), _speed(tally), _unsolved(tally))
    refused = ", ".join(f"{reason} {count}" for reason, count in tally.rejections.most_common())
    return Group(
        columns, Text(), _missed(tally), Text(), Text(f"refused: {refused or 'none'}", "dim")
    )


def _table(title: str, columns: int) -> Table:
    """Build a small table with a column of names and right-aligned columns of figures."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title, no_wrap=True)
    for _ in range(columns):
        table.add_column(justify="right", no_wrap=True)
    return table


def _solved(tally: Tally) -> Table:
    table = _table("solved", 2)
    table.add_row(Kind.KNOWN, *_share(tally.solve_rate(Kind.KNOWN)))
    return table


def _missed(tally: Tally) -> Table:
    """Build the table of changed messages that pass: solved, or with an accepted text."""
    table = _table("changed, but missed", 0)
    for judge in ("by the model", "by the text check"):
        table.add_column(judge, justify="right", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
    for kind in CHANGES:
        by_model, by_text = tally.solve_rate(kind), tally.missed_by_text(kind)
        table.add_row(kind.replace("_", " "), *_share(by_model), *_share(by_text))
    return table


def _share(counted_of: tuple[int, int]) -> tuple[str, str]:
    counted, of = counted_of
    return f"{counted}/{of}", _rate(counted_of)


def _speed(tally: Tally) -> Table:
    table = _table("speed", 1)
    table.add_row("messages a second", f"{tally.rate:.1f}")
    for name, values in (("latency", tally.latencies), ("inference", tally.inference)):
        for percent in (50, 99):
            value = percentile(values, percent)
            table.add_row(f"{name} p{percent}", "-" if value is None else f"{value:.2f} s")
    return table


def _unsolved(tally: Tally) -> Table:
    table = _table("unsolved", 1)
    for pattern, count in tally.patterns.most_common():
        table.add_row(pattern, str(count))
    return table


def _rate(counted_of: tuple[int, int]) -> str:
    """The share in percent: 0 and 100 only if it is exactly that, a dash without any."""
    counted, of = counted_of
    if not of:
        return "-"
    percentage = round(100 * counted / of, 1)
    if 0 < counted < of:
        percentage = min(max(percentage, 0.1), 99.9)
    return f"{percentage:.1f} %"
