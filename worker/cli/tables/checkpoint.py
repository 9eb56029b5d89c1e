"""Checkpoints on the screen: inspections and comparisons, in tables of up to 100 columns.

Knows `hrm.checkpoint.inspection`, `hrm.evaluation.comparison` and rich; computes nothing.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hrm.checkpoint.figures import RecordedFigures, RecordedSet
from hrm.checkpoint.inspection import (
    Component,
    ConfigurationValue,
    Inspection,
    PairsSummary,
    TaskSummary,
    TensorStatistics,
)
from hrm.checkpoint.precision import RecordedPrecision
from hrm.data.config import ENOUGH_PROMPTS
from hrm.evaluation.comparison import CONVERGED_BELOW, Comparison, StepChange, TensorChange
from hrm.evaluation.recommendation import CheckpointFigures, Recommendation
from hrm.evaluation.statistics import Share, ShareOf
from schemas import HaltedBy, PromptMatch
from worker.cli.tables.paired import differing, pairs_table, pairs_title
from worker.cli.tables.style import (
    NOTHING,
    interval,
    number,
    percent,
    print_parts,
    signed_percent,
    table,
)

GAP = 2
"""Spaces between two columns."""

MOST_MOVED = 8
"""Tensors shown for each step of a comparison; --json has all."""

_ALL_OR_NOTHING = frozenset({PromptMatch.PAIR, PromptMatch.NONE})
"""Prompts that were trained, and prompts of which nothing was."""

_MEBIBYTE = 1024**2
_FIXED_FROM = 1e-3
_FIXED_BELOW = 1e2
"""Weights in this range are written with four decimals, others with an exponent."""

_SHORT_DTYPE = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f64"}


def print_inspection(inspection: Inspection) -> None:
    """Print everything known about one checkpoint."""
    tasks = [("Tasks", _tasks_table(inspection.tasks))] if inspection.tasks else []
    print_parts(
        ("", _heading(inspection)),
        *_recorded(inspection.figures),
        *_precision(inspection.precision),
        ("Components", _components_table(inspection)),
        ("Configuration", _configuration_table(inspection)),
        *tasks,
        (
            "Tensors (mean |x|, deviation and range of the finite numbers)",
            _tensors_table(inspection.tensors),
        ),
    )


def print_comparison(comparison: Comparison) -> None:
    """Print what changed, what was measured, and what follows from it."""
    parts: list[tuple[str, RenderableType]] = [
        ("Checkpoints", _checkpoints_table(comparison.checkpoints))
    ]
    for step in comparison.steps:
        parts.append((f"{step.earlier} → {step.later}", _step_table(step)))
        parts.append(("", Text(_step_verdict(step))))
    if comparison.measured:
        parts.append((f"Inference on {comparison.data}", _measured_table(comparison.measured)))
        if matches := _matches(comparison.measured):
            apart = _matches_table(comparison.measured, matches)
            parts.append(("Solved, by what was trained of the prompts", apart))
        parts.append((pairs_title(comparison.repeated_lines), pairs_table(comparison.pairs)))
        parts.append(("", differing(comparison.pairs)))
    parts.append(("", Text("\n").join(map(_recommendation, comparison.recommendations))))
    print_parts(*parts)


def _heading(inspection: Inspection) -> Text:
    training, stored = inspection.training, _mebibytes(inspection.stored_bytes)
    trained = f"{training.pairs:,} known pairs" if training else "no record: no pair is known"
    if training and training.varied_prompts:
        trained += f"; {training.varied_prompts:,} prompts were varied"
    if training and training.further_answers:
        trained += f", and {training.further_answers:,} further answers in puzzle rows of their own"
    if training is None:
        texts = "no hashes of accepted texts: it has no record"
    elif training.prompts is None:
        texts = (
            f"no hashes of accepted texts: its record is of version {training.format_version} "
            "(see sqe-hrm checkpoint record)"
        )
    else:
        texts = f"accepted completions of {training.prompts:,} prompts, as hashes"
        if training.several_answers:
            texts += f"; {training.several_answers:,} have several"
    lines = [
        ("checkpoint", inspection.name),
        ("file", inspection.path),
        ("digest", inspection.digest),
        ("parameters", f"{inspection.parameters:,}"),
        ("puzzles", f"{inspection.puzzles:,}"),
        ("in memory", f"{_mebibytes(inspection.memory_bytes)} as float32"),
        ("on disk", f"{_mebibytes(inspection.file_bytes)}, weights {stored}"),
        (
            "dtypes",
            ", ".join(f"{dtype} {count:,}" for dtype, count in inspection.dtypes.items()),
        ),
        ("training", trained),
        ("texts", texts),
        ("pairs", _pairs(inspection.accepted_pairs)),
    ]
    if inspection.figures is None:
        lines.append(
            ("figures", "none recorded, so workers run fixed steps (see sqe-hrm checkpoint record)")
        )
    if inspection.precision is None:
        lines.append(("precision", "none recorded (see sqe-hrm checkpoint record)"))
    width = max(len(name) for name, _ in lines)
    parts = [Text.assemble((f"{name:{width}}", "bold"), f"  {value}") for name, value in lines]
    if inspection.nan or inspection.infinite:
        warning = (
            f"{inspection.nan:,} NaN and {inspection.infinite:,} infinite numbers: "
            "this checkpoint is refused where it would be used"
        )
        parts.append(Text(warning, "bold red"))
    text = Text("\n").join(parts)
    # A path stays on its line, so that it can be copied whole.
    text.no_wrap = True
    return text


def _pairs(summary: PairsSummary | None) -> str:
    """The pairs that training further can replay."""
    if summary is None:
        return "none kept to train further with (see sqe-hrm checkpoint record)"
    return f"{summary.pairs:,} accepted, as tokens: {solved_counts(summary.solved)}"


def solved_counts(solved: Mapping[HaltedBy, int] | None) -> str:
    """How many accepted pairs are solved under each halting rule, in words."""
    if solved is None:
        return "unknown which are solved"
    counts = [f"{count:,} under {rule}" for rule, count in solved.items()]
    return f"solved {', '.join(counts)}"


def _recorded(figures: RecordedFigures | None) -> list[tuple[str, RenderableType]]:
    """The recorded figures, and what follows from them."""
    if figures is None:
        return []
    made = table(
        *("", "halting", "solved", "rate", "95 % interval", "tokens", "Q right", "steps"),
        left=(0, 1),
        gap=GAP,
    )
    sets: list[tuple[str, RecordedSet, ShareOf]] = [("accepted", figures.accepted, Share.counted)]
    if figures.held_out is not None:
        sets.append(("held out", figures.held_out, Share.measured))
    for label, measured, share in sets:
        for rule in (HaltedBy.MAX_STEPS, HaltedBy.Q):
            of_rule = measured.of(rule)
            solved = share(of_rule.solved, measured.messages)
            made.add_row(
                label,
                rule.value,
                f"{solved.count:,}/{solved.of:,}",
                percent(solved.share),
                interval(solved),
                percent(of_rule.tokens_right / measured.target_tokens),
                percent(of_rule.q_right / measured.messages),
                number(of_rule.mean_act_steps),
            )
    title = f"Recorded figures ({figures.date}, {figures.dtype}, {figures.halt_max_steps} steps)"
    return [(title, made), ("", Text(f"Workers choose {figures.evidence().reason}."))]


def _precision(precision: RecordedPrecision | None) -> list[tuple[str, RenderableType]]:
    """The differences between coarser dtypes and float32."""
    if precision is None:
        return []
    made = table(
        *("", "halting", "predictions", "steps", "verdicts", "patterns of longer"),
        left=(0, 1),
        gap=GAP,
    )
    for check in precision.checks:
        for rule in (HaltedBy.MAX_STEPS, HaltedBy.Q):
            found = check.of(rule)
            counts = found.predictions, found.act_steps, found.verdicts, found.patterns_beyond
            made.add_row(check.dtype, rule.value, *(f"{n:,}" for n in counts))
    title = (
        f"Differences from float32 ({precision.pairs:,} pairs and {precision.changed:,} changed "
        f"completions, {precision.halt_max_steps} steps)"
    )
    by = "; ".join(f"{each.dtype} by {each.computed_by}" for each in precision.checks)
    return [(title, made), ("", Text(f"Computed in {by}."))]


def _components_table(inspection: Inspection) -> Table:
    made = table("", "parameters", "share", "stored", gap=GAP)
    for part in inspection.components:
        made.add_row(
            part.component,
            f"{part.parameters:,}",
            percent(part.share),
            _mebibytes(part.stored_bytes),
        )
    return made


def _configuration_table(inspection: Inspection) -> Table:
    made = table("", "value", "from", left=(0, 2), gap=GAP)
    values: Mapping[str, ConfigurationValue] = inspection.model | inspection.conversion
    for name, value in values.items():
        made.add_row(name, f"{value.value}", value.source)
    return made


def _tasks_table(tasks: Sequence[TaskSummary]) -> Table:
    made = table("", "puzzle", "prompts", "new prompts", left=(0, 3), gap=GAP)
    for task in tasks:
        prompts = NOTHING if task.prompts is None else f"{task.prompts:,}"
        enough = task.prompts is not None and task.prompts >= ENOUGH_PROMPTS
        judged = "are judged" if enough else "too new to judge"
        made.add_row(task.name, f"{task.row:,}", prompts, judged)
    return made


def _tensors_table(tensors: Mapping[str, TensorStatistics]) -> Table:
    columns = ("", "shape", "dtype", "mean |x|", "std", "min", "max", "zeros", "NaN", "Inf")
    # Ten columns have room for one space between them.
    made = table(*columns, gap=1)
    for component, group in groupby(tensors.items(), key=lambda item: item[1].component):
        made.add_row(Text(component, "bold"))
        for key, tensor in group:
            made.add_row(
                f" {_within(key, component)}",
                "x".join(map(str, tensor.shape)),
                _SHORT_DTYPE[tensor.dtype],
                _weight(tensor.mean_absolute),
                _weight(tensor.standard_deviation),
                _weight(tensor.minimum),
                _weight(tensor.maximum),
                percent(tensor.sparsity),
                _count(tensor.nan),
                _count(tensor.infinite),
            )
    return made


def _within(key: str, component: Component) -> str:
    """`key` without the level, which the line above the group names."""
    is_level = component in {Component.H_LEVEL, Component.L_LEVEL}
    return key.partition(".")[2] if is_level else key


def _checkpoints_table(checkpoints: Mapping[str, Inspection]) -> Table:
    made = table("", "digest", "parameters", "in memory", "known pairs", gap=GAP)
    for label, inspection in checkpoints.items():
        training = inspection.training
        made.add_row(
            label,
            inspection.digest[:12],
            f"{inspection.parameters:,}",
            _mebibytes(inspection.memory_bytes),
            f"{training.pairs:,}" if training else "no record",
        )
    return made


def _step_table(step: StepChange) -> Table:
    made = table("", "moved", "magnitude", "spread", gap=GAP)
    everything = TensorChange(
        magnitude_percent=step.magnitude_percent, spread_percent=step.spread_percent, moved=None
    )
    made.add_row("all weights", "", *_changes(everything))
    for key, change in list(step.tensors.items())[:MOST_MOVED]:
        moved = "other shape" if change.moved is None else percent(change.moved)
        made.add_row(f" {key}", moved, *_changes(change))
    if len(step.tensors) > MOST_MOVED:
        made.add_row(f" {len(step.tensors) - MOST_MOVED} that moved less: see --json")
    for key in step.only_earlier:
        made.add_row(f" {key}", "gone")
    for key in step.only_later:
        made.add_row(f" {key}", "new")
    return made


def _changes(change: TensorChange) -> tuple[str, str]:
    return _signed(change.magnitude_percent), _signed(change.spread_percent)


def _step_verdict(step: StepChange) -> str:
    limit = percent(CONVERGED_BELOW, 0)
    if step.converged is None or step.moved is None:
        return "The networks differ, so it cannot be told whether the weights converged."
    if step.converged:
        return f"Converged: no tensor moved further than {limit} of its norm."
    return f"Not converged: a tensor moved {percent(step.moved)} of its norm; the limit is {limit}."


def _measured_table(measured: Sequence[CheckpointFigures]) -> Table:
    made = table(
        *("", "halting", "known", "solved", "rate", "95 % interval", "tokens", "Q right", "steps"),
        left=(0, 1),
        gap=GAP,
    )
    for figures in measured:
        solved = figures.solved
        made.add_row(
            figures.checkpoint,
            HaltedBy(figures.halting).value,
            f"{figures.known:,}",
            f"{solved.count:,}/{solved.of:,}",
            percent(solved.share),
            interval(solved),
            percent(figures.token_accuracy),
            percent(figures.q_accuracy),
            number(figures.mean_act_steps),
        )
    return made


def _matches(measured: Sequence[CheckpointFigures]) -> list[PromptMatch]:
    """The kinds of prompts that are told apart: none if all are either trained or foreign."""
    found = {match for figures in measured for match in figures.solved_by_match}
    return [match for match in PromptMatch if match in found] if found - _ALL_OR_NOTHING else []


def _matches_table(measured: Sequence[CheckpointFigures], matches: Sequence[PromptMatch]) -> Table:
    made = table("", "halting", *(match.value for match in matches), left=(0, 1), gap=GAP)
    for figures in measured:
        shares = (figures.solved_by_match.get(match) for match in matches)
        cells = (NOTHING if share is None else f"{share.count:,}/{share.of:,}" for share in shares)
        made.add_row(figures.checkpoint, HaltedBy(figures.halting).value, *cells)
    return made


def _recommendation(recommendation: Recommendation) -> Text:
    if recommendation.halting is None:
        return Text(f"{recommendation.reason}: give --data-path FILE")
    return Text(f"{recommendation.halting}: {recommendation.reason}")


def _mebibytes(count: int) -> str:
    return f"{count / _MEBIBYTE:,.2f} MiB"


def _signed(percentage: float | None) -> str:
    return "from zero" if percentage is None else signed_percent(percentage)


def _count(count: int) -> str:
    return f"{count:,}" if count else NOTHING


def _weight(value: float | None) -> str:
    """A number of a tensor in at most 8 characters, so that ten columns fit."""
    if value is None:
        return NOTHING
    fixed = value == 0 or _FIXED_FROM <= abs(value) < _FIXED_BELOW
    return f"{value:.4f}" if fixed else f"{value:.1e}"
