"""The table of runs that differ in their seed.

Knows what `hrm.training.seeds` reports; computes means and extremes, nothing else.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from rich.text import Text

from hrm.training.seeds import SeedResult
from worker.cli.tables.style import NOTHING, number, percent, print_parts, table
from worker.cli.tables.training import duration

_Figure = Callable[[SeedResult], float]


def print_seeds(folder: Path, results: Sequence[SeedResult]) -> None:
    """Print what the run of each seed reached, on all messages, with means and extremes.

    Solved messages, right tokens and a right Q head are those of the weaker rule; the steps are
    those under `q`.
    """
    shown = table("seed", "step", "solved", "tokens", "Q right", "ACT steps, q", "time")
    for each in results:
        shown.add_row(
            str(each.seed),
            str(each.step),
            f"{_solved(each)}/{each.training.q.examples}",
            percent(_tokens(each)),
            percent(_q_right(each)) if _solved(each) else NOTHING,
            number(each.training.q.mean_act_steps),
            duration(each.seconds),
        )
    shown.add_section()
    solving = [each for each in results if _solved(each)]
    columns: tuple[tuple[Sequence[SeedResult], _Figure, Callable[[float], str]], ...] = (
        (results, lambda each: each.step, _count),
        (results, _solved, _count),
        (results, _tokens, percent),
        (solving, _q_right, percent),
        (results, lambda each: each.training.q.mean_act_steps, number),
        (results, lambda each: each.seconds, duration),
    )
    for name, of in (("mean", fmean), ("min", min), ("max", max)):
        cells = [
            as_text(of([figure(each) for each in found])) if found else NOTHING
            for found, figure, as_text in columns
        ]
        shown.add_row(name, *cells)
    best = max(results, key=lambda each: each.rank)
    last = Text(f"{folder}: best is seed {best.seed}, step {best.step}", no_wrap=True)
    print_parts(("", shown), ("", last))


def _count(value: float) -> str:
    """A count, or the mean of some."""
    return str(value) if isinstance(value, int) else number(value)


def _solved(result: SeedResult) -> int:
    return min(result.training.max_steps.solved, result.training.q.solved)


def _tokens(result: SeedResult) -> float:
    return min(result.training.max_steps.token_accuracy, result.training.q.token_accuracy)


def _q_right(result: SeedResult) -> float:
    return min(result.training.max_steps.q_accuracy, result.training.q.q_accuracy)
