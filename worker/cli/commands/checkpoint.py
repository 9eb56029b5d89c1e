"""`sqe-hrm checkpoint`: what a checkpoint contains, which of several to take, and its record.

`worker.cli.promotion` has the commands for the one that is `current`.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from hrm.checkpoint import Checkpoint, TrainingRecord, open_checkpoint
from hrm.checkpoint.figures import RecordedFigures, write_figures
from hrm.checkpoint.inspection import inspect_checkpoint
from hrm.checkpoint.pairs import AcceptedPairs
from hrm.checkpoint.precision import write_precision
from hrm.checkpoint.record import TRAINING_PAIRS
from hrm.checkpoint.solved import ACCEPTED_PAIRS
from hrm.data.conversion import Content, Converter
from hrm.data.files import LineReader, RefusedLine
from hrm.evaluation.comparison import compare_checkpoints
from hrm.evaluation.precision import measure_precision
from hrm.evaluation.recommendation import (
    ComparisonError,
    Measurements,
    labels_of,
    measure_messages,
)
from hrm.training.examples import completed_record
from hrm.training.recording import measure_accepted
from schemas import SQEHRMError
from worker.cli.files import read_with_progress, refused_line_printer, write_text
from worker.cli.options import (
    RULES,
    data_path_option,
    device_option,
    json_option,
    rules_option,
    use_device,
)
from worker.cli.promotion import history, promote, rollback
from worker.cli.tables.checkpoint import print_comparison, print_inspection, solved_counts
from worker.settings import Settings


@click.group("checkpoint")
def command() -> None:
    """Inspect a checkpoint, compare several, complete the record of one, or promote one.

    A checkpoint is a path, or a name looked up in SQE_CHECKPOINT_DIR (default: checkpoints), then
    among the shipped checkpoints. `current` is the one that was promoted last.
    """


for each in (promote, rollback, history):
    command.add_command(each)


@command.command("inspect")
@click.argument("checkpoint")
@json_option
def inspect_(checkpoint: str, as_json: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Show a checkpoint's parts, sizes, configuration and numbers.

    Weights with NaN or infinite numbers are shown too, although no other command loads them. No
    inference is run: use `sqe-hrm evaluate` to find out how good a checkpoint is.
    """
    folder = Settings.from_env().checkpoint_dir
    inspection = inspect_checkpoint(open_checkpoint(checkpoint, folder, damaged=True))
    if as_json:
        click.echo(inspection.model_dump_json(indent=2))
    else:
        print_inspection(inspection)


@command.command("compare")
@click.argument("checkpoints", nargs=-1, required=True)
@data_path_option(
    "JSONL file to measure solve rates on: messages, prompt-completion pairs, or converted "
    "examples.",
    required=False,
)
@rules_option("Halting rule to measure under, with --data-path.")
@device_option()
@json_option
def compare(
    checkpoints: tuple[str, ...],
    data_path: Path | None,
    halting: str,
    device: str | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Compare the CHECKPOINTS of a run, the earliest first.

    Shows how the weights change from each checkpoint to the next, and whether they converged. With
    --data-path, every checkpoint is run on that file, in which equal examples count once. The one
    that solves significantly more than each other is recommended: by McNemar's exact test on the
    messages that only one of two solves, with Holm's correction for all pairs, below 0.05. Without
    --data-path, none is recommended.
    """
    if len(checkpoints) == 1:
        raise click.UsageError("name at least two checkpoints, or use: sqe-hrm checkpoint inspect")
    settings = Settings.from_env(device=device)
    # Everything that can be refused at once is refused before the slow work.
    torch_device = "cpu" if data_path is None else use_device(settings).torch_name
    loaded = [open_checkpoint(name, settings.checkpoint_dir) for name in checkpoints]
    labels_of(loaded)
    measured: Measurements | None = None
    refused: list[RefusedLine] = []
    if data_path is not None:
        with _lines(data_path, LineReader(settings.max_message_bytes), refused) as lines:
            measured = measure_messages(loaded, lines, RULES[halting], torch_device)
        if not measured.figures:
            raise SQEHRMError(f"{data_path} holds no message: give a file that does")
    comparison = compare_checkpoints(
        loaded,
        measured,
        data=None if data_path is None else str(data_path),
        refused_lines=len(refused),
    )
    if as_json:
        click.echo(comparison.model_dump_json(indent=2))
    else:
        print_comparison(comparison)


@command.command("record")
@click.argument("checkpoint")
@data_path_option("JSONL file of exactly the messages that the checkpoint was trained on.")
@device_option()
def record(checkpoint: str, data_path: Path, device: str | None) -> None:
    """Complete what a checkpoint records: accepted texts, accepted pairs, figures and precision.

    A checkpoint that was trained before records had hashes of the accepted texts has a record of
    version 1, and the text check of its verdicts is always unknown. One that was trained before
    figures were recorded does not say which halting rule to use. One without accepted.pairs cannot
    be trained further without forgetting. One without precision.json does not say whether a faster
    dtype changes its verdicts. If the messages are exactly those that the record knows, a record of
    version 2 takes its place, the messages are measured under both halting rules, their tokens are
    kept, and their verdicts in bfloat16 and int8 are compared with those in float32. Weights,
    configuration and digest stay as they are.
    """
    settings = Settings.from_env(device=device)
    torch_device = use_device(settings).torch_name
    loaded = open_checkpoint(checkpoint, settings.checkpoint_dir)
    known = loaded.training
    if known is None:
        raise SQEHRMError(
            f"checkpoint {loaded.name} has no record of its training pairs to check {data_path} "
            "against: train it anew"
        )
    pairs = loaded.accepted_pairs()
    has_pairs = pairs is not None and pairs.solved_with(loaded.digest) is not None
    if known.accepted and loaded.figures and has_pairs and loaded.precision:
        raise SQEHRMError(
            f"checkpoint {loaded.name}: its record is of version 2 and has figures, pairs and "
            "precision already: keep it"
        )
    folder = loaded.path.parent
    # Known before the measuring, which takes minutes.
    if not os.access(folder, os.W_OK):
        raise SQEHRMError(
            f"{folder}: cannot be written: copy the checkpoint to a folder of your own"
        )
    if known.accepted is None:
        known = _complete_record(loaded, known, data_path)
    if loaded.figures is None or not has_pairs:
        with Console(stderr=True).status(f"Measuring {loaded.name} under both halting rules"):
            measured = measure_accepted(loaded, known, data_path, torch_device)
        if loaded.figures is None:
            _record_figures(loaded, measured.figures)
        if not has_pairs:
            _record_pairs(loaded, measured.pairs)
    if loaded.precision is None:
        _record_precision(replace(loaded, training=known), torch_device)


def _complete_record(
    checkpoint: Checkpoint, known: TrainingRecord, data_path: Path
) -> TrainingRecord:
    completed = completed_record(known, data_path, Converter(checkpoint.conversion))
    file = checkpoint.path.parent / TRAINING_PAIRS
    write_text(file, completed.to_json())
    click.echo(f"{file}: version 2, {len(completed.pair_hashes):,} pairs with their texts' hashes")
    return completed


def _record_figures(checkpoint: Checkpoint, figures: RecordedFigures) -> None:
    file = write_figures(checkpoint.path.parent, figures)
    click.echo(
        f"{file}: {figures.accepted.messages:,} messages measured, which support "
        f"{figures.evidence().reason}"
    )


def _record_pairs(checkpoint: Checkpoint, pairs: AcceptedPairs) -> None:
    file = checkpoint.path.parent / ACCEPTED_PAIRS
    pairs.write(file)
    click.echo(f"{file}: {len(pairs):,} accepted pairs as tokens, {solved_counts(pairs.counts)}")


def _record_precision(checkpoint: Checkpoint, device: str) -> None:
    with Console(stderr=True).status(f"Comparing verdicts of {checkpoint.name} with float32"):
        precision = measure_precision(checkpoint, device=device)
    file = write_precision(checkpoint.path.parent, precision)
    for check in precision.checks:
        click.echo(f"{file}: {check.dtype}: {precision.summary(check)}")


@contextlib.contextmanager
def _lines(
    path: Path, reader: LineReader, refused: list[RefusedLine]
) -> Iterator[Iterator[tuple[int, Content]]]:
    """The contents of the sound lines of `path`, each with its index from 0.

    Refused lines are printed on stderr and added to `refused`.
    """
    print_refused = refused_line_printer(path)
    try:
        with read_with_progress(path, "Measuring") as source:

            def sound() -> Iterator[tuple[int, Content]]:
                for index, content in reader.contents(source):
                    if isinstance(content, RefusedLine):
                        print_refused(content)
                        refused.append(content)
                    else:
                        yield index, content

            yield sound()
    except ComparisonError as error:
        raise SQEHRMError(f"{path}: {error}") from None
