"""The table of runs that differ in their seed.

Knows what `hrm.training.seeds` reports; computes means and ranges, nothing else.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from rich.text import Text

from hrm.training.seeds import SeedResult
from worker.cli.tables.style import NOTHING, number, percent, print_parts, table
from worker.cli.tables.training import duration


def print_seeds(folder: Path, results: Sequence[SeedResult]) -> None:
    """Print what the run of each seed reached, on all messages, with means and ranges.

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
        (results, lambda each: each.step, number),
        (results, _solved, number),
        (results, _tokens, percent),
        (solving, _q_right, percent),
        (results, lambda each: each.training.q.mean_act_steps, number),
        (results, lambda each: each.seconds, duration),
    )
    shown.add_row("mean", *(_mean(found, figure, as_text) for found, figure, as_text in columns))
    shown.add_row("range", *(_range(found, figure, as_text) for found, figure, as_text in columns))
    best = max(results, key=lambda each: each.rank)
    last = Text(f"{folder}: best is seed {best.seed}, step {best.step}", no_wrap=True)
    print_parts(("", shown), ("", last))


_Figure = Callable[[SeedResult], float]


def _mean(results: Sequence[SeedResult], figure: _Figure, as_text: Callable[[float], str]) -> str:
    return as_text(fmean(map(figure, results))) if results else NOTHING


def _range(results: Sequence[SeedResult], figure: _Figure, as_text: Callable[[float], str]) -> str:
    if not results:
        return NOTHING
    low, high = (as_text(of(map(figure, results))) for of in (min, max))
    return low if low == high else f"{low} to {high}"


def _solved(result: SeedResult) -> int:
    return min(result.training.max_steps.solved, result.training.q.solved)


def _tokens(result: SeedResult) -> float:
    return min(result.training.max_steps.token_accuracy, result.training.q.token_accuracy)


def _q_right(result: SeedResult) -> float:
    return min(result.training.max_steps.q_accuracy, result.training.q.q_accuracy)
