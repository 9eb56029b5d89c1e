"""`sqe-hrm evaluate`: measures how well a checkpoint does on a file."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hrm.data.files import BUFFER_BYTES, LineReader
from hrm.evaluation.baselines import Baseline, commonest
from hrm.evaluation.evaluator import Evaluator
from hrm.evaluation.report import EvaluationReport
from hrm.evaluation.run import evaluate_file, fit_baselines
from schemas import SQEHRMError, Verdict
from worker.cli.files import (
    check_outputs,
    check_strict,
    read_with_progress,
    reading,
    refused_line_printer,
    write_text,
    writing,
)
from worker.cli.opening import open_evaluator
from worker.cli.options import (
    FILE,
    NEW_FILE,
    checkpoint_option,
    data_path_option,
    file_inference_options,
    json_option,
    report_option,
    strict_option,
)
from worker.cli.tables.evaluation import print_report
from worker.settings import Settings


@click.command("evaluate")
@checkpoint_option()
@data_path_option()
@click.option("--train-data", type=FILE, help="JSONL file of training pairs, for the baselines.")
@file_inference_options
@report_option
@click.option("--verdicts", type=NEW_FILE, help="File to write one verdict per line to, in order.")
@strict_option()
@json_option
def command(
    checkpoint: str | None,
    data_path: Path,
    train_data: Path | None,
    device: str | None,
    batch_size: int | None,
    halting: str,
    max_steps: int | None,
    dtype: str,
    output: Path | None,
    verdicts: Path | None,
    strict: bool,  # noqa: FBT001 - click passes flags by name
    as_json: bool,  # noqa: FBT001
) -> None:
    """Evaluate a file with a checkpoint, and report how well it does.

    Messages are converted with the word hash and the puzzle policy that the checkpoint was trained
    with. Converted examples are used as they are: if they were converted with another word hash or
    policy than the checkpoint's, nothing in them shows it, and the figures are meaningless.

    A line that cannot be evaluated is reported on stderr with its number, and skipped. The screen
    shows the main figures; --output and --json have all of them.

    Baselines from --train-data show what the network adds. Three ignore the input: the most common
    target token, the most common token by position, and a bigram that continues from its own last
    guess. Two look at it: lookup gives the target of the training pair with the same puzzle and
    input, nearest neighbour that of the training pair with the smallest edit distance of its input
    (up to 10,000 pairs). Without --train-data, only the first is shown: a checkpoint records counts
    and hashes of its training pairs, not the pairs.
    """
    check_outputs((data_path, train_data), (output, verdicts))
    settings = Settings.from_env(checkpoint=checkpoint, device=device)
    evaluator = open_evaluator(
        settings, batch_size=batch_size, halting=halting, max_steps=max_steps, dtype=dtype
    )
    reader = LineReader(settings.max_message_bytes)
    with contextlib.closing(evaluator):
        baselines = _baselines(train_data, evaluator, reader)
        report = _evaluate(data_path, evaluator, baselines, reader, verdicts)
    text = report.model_dump_json(indent=2)
    if output is not None:
        write_text(output, text)
    if as_json:
        click.echo(text)
    else:
        print_report(report)
    if strict:
        check_strict(data_path, sum(report.lines.refused.values()))


def _baselines(
    train_data: Path | None, evaluator: Evaluator, reader: LineReader
) -> tuple[Baseline, ...]:
    checkpoint = evaluator.checkpoint
    if train_data is None:
        record = checkpoint.training
        if record is None:
            return ()
        return (commonest(record.target_token_counts, "the checkpoint's training targets"),)
    with read_with_progress(train_data, "Reading baselines") as source:
        baselines = fit_baselines(
            source,
            str(train_data),
            evaluator.converter,
            reader=reader,
            on_refused=refused_line_printer(train_data),
            on_left_out=lambda reason: click.echo(f"{train_data}: {reason}", err=True),
        )
    if not baselines:
        raise SQEHRMError(f"{train_data} holds no training pair: name another file, or none")
    return baselines


def _evaluate(
    data_path: Path,
    evaluator: Evaluator,
    baselines: tuple[Baseline, ...],
    reader: LineReader,
    verdicts: Path | None,
) -> EvaluationReport:
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(writing(verdicts)) if verdicts is not None else None
        stack.enter_context(reading(data_path))
        source = stack.enter_context(data_path.open("rb", buffering=BUFFER_BYTES))
        on_progress = stack.enter_context(_progress(data_path, source))

        def on_verdict(verdict: Verdict) -> None:
            if sink is not None:
                sink.write(verdict.model_dump_json().encode() + b"\n")
            on_progress(verdict)

        return evaluate_file(
            source,
            str(data_path),
            evaluator,
            baselines=baselines,
            reader=reader,
            on_refused=refused_line_printer(data_path),
            on_verdict=on_verdict,
        )


@contextlib.contextmanager
def _progress(path: Path, source: BinaryIO) -> Iterator[Callable[[Verdict], None]]:
    """A function that notes each verdict in a progress bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _verdict: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[evaluated]:,} evaluated, {task.fields[solved]:,} solved"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        # A pipe has neither a size nor a position.
        size = path.stat().st_size if source.seekable() else None
        task = bar.add_task("Evaluating", total=size, evaluated=0, solved=0)
        evaluated = solved = 0

        def on_verdict(verdict: Verdict) -> None:
            nonlocal evaluated, solved
            evaluated += 1
            solved += verdict.solved
            read = None if size is None else source.tell()
            bar.update(task, completed=read, evaluated=evaluated, solved=solved)

        yield on_verdict
