"""Promotions and their history, as tables.

Knows the registry, the report of a promotion and rich; computes nothing.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hrm.checkpoint.checkpoint import PromotedState
from hrm.checkpoint.registry import Promoted, PromotionFigures, Registry
from hrm.evaluation.promotion import Loss, LostPair, PromotionReport
from worker.cli.tables.style import NOTHING, print_parts, table

LOST_SHOWN = 20
"""Lost pairs in the table; --json has all."""

_DIGEST = 12
"""Characters of a digest or hash that are shown."""

_GAP = 2

_COUNTED = ("pairs", "both", "only old", "only new", "neither", "unknown", "unjudged")


def print_promotion(report: PromotionReport) -> None:
    """Print what was compared, what is lost, and what is current now."""
    old, new = report.compared_with, report.checkpoint
    parts: list[tuple[str, RenderableType]] = []
    if any(each.pairs or each.unjudged for each in report.figures):
        title = f"{old} → {new}" if old else f"{new}, measured alone"
        parts.append((title, _figures_table(report.figures, alone=old is None)))
    else:
        parts.append(("", Text(f"{new}: {report.decision}; not measured, for lack of pairs")))
    if report.conversions_differ and old is not None:
        parts.append(
            (
                "",
                Text(
                    f"{new.name} converts messages otherwise than {old.name}: puzzle ids and "
                    "tokens in the verdicts of a worker that serves it mean something else than "
                    "before."
                ),
            )
        )
    judged = [each for each in report.lost if each.loss is not Loss.NOT_IN_FILE]
    if judged:
        more = len(judged) - LOST_SHOWN
        shown = f", the first {LOST_SHOWN} of them: --json has all" if more > 0 else ""
        parts.append((f"Lost: {len(judged):,}{shown}", _lost_table(judged)))
    unjudged = len(report.lost) - len(judged)
    if unjudged and old is not None:
        parts.append(
            (
                "",
                Text(
                    f"Not in {report.data}: {unjudged:,} of the pairs that {old.name} was trained "
                    "on. Nobody can tell whether they are lost; --json has their hashes."
                ),
            )
        )
    if report.promoted:
        was = f", was {report.replaced}" if report.replaced else ""
        parts.append(("", Text(f"{report.decision}\ncurrent: {new}{was}", no_wrap=True)))
    print_parts(*parts)


def print_history(
    registry: Registry, states: Mapping[Promoted, PromotedState], source: str
) -> None:
    """Print all events of `source`, and the figures of those that measured something."""
    events = table(
        *("checkpoint", "digest", "event", "time (UTC)", "decided", "now"),
        left=range(6),
        gap=_GAP,
    )
    figures = table("", "halting", *_COUNTED, left=(0, 1), gap=_GAP)
    last = len(registry.history) - 1
    for number, event in enumerate(registry.history):
        new, state = event.checkpoint, states[event.checkpoint]
        notes = ["current"] if number == last else []
        if state is not PromotedState.KEPT:
            notes.append(state.value)
        events.add_row(
            Text(new.name),
            new.digest[:_DIGEST],
            event.action.value,
            f"{event.time.astimezone(UTC):%Y-%m-%d %H:%M}",
            # A table has no room for the option that a person gave.
            Text(event.decision.removesuffix(": --accept-losses")),
            ", ".join(notes),
        )
        old = event.compared_with
        for each in event.figures:
            title = f"{old.name} → {new.name}" if old else new.name
            figures.add_row(Text(title), each.halting.value, *_counts(each))
    parts: list[tuple[str, RenderableType]] = [(source, events)]
    if figures.row_count:
        parts.append(("Solved of the same pairs", figures))
    print_parts(*parts)


def _figures_table(figures: Sequence[PromotionFigures], *, alone: bool) -> Table:
    if alone:
        made = table("halting", "pairs", "solved", gap=_GAP)
        for each in figures:
            made.add_row(each.halting.value, f"{each.pairs:,}", f"{each.only_new:,}")
        return made
    made = table("halting", *_COUNTED, gap=_GAP)
    for each in figures:
        made.add_row(each.halting.value, *_counts(each))
    return made


def _counts(figures: PromotionFigures) -> list[str]:
    counts = (
        *(figures.pairs, figures.both, figures.only_old, figures.only_new),
        *(figures.neither, figures.unknown, figures.unjudged),
    )
    return [f"{count:,}" for count in counts]


def _lost_table(lost: Sequence[LostPair]) -> Table:
    shown = lost[:LOST_SHOWN]
    from_file = any(each.line is not None for each in shown)
    columns = ("pair", "puzzle", "loss", "halting", *(("line", "prompt") if from_file else ()))
    made = table(*columns, left=(0, 2, 3, 5), gap=_GAP)
    for each in shown:
        made.add_row(
            each.pair[:_DIGEST],
            NOTHING if each.puzzle_id is None else f"{each.puzzle_id}",
            each.loss.value,
            each.rules[0].value if len(each.rules) == 1 else "both",
            *((NOTHING if each.line is None else f"{each.line:,}",) if from_file else ()),
            *((Text(each.prompt or NOTHING),) if from_file else ()),
        )
    return made
