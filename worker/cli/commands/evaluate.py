"""`sqe-hrm evaluate`: what a checkpoint makes of a file, in figures."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hrm.checkpoint import find_checkpoint, load_checkpoint
from hrm.data.files import BUFFER_BYTES, LineReader, replaced_file
from hrm.data.vocabulary import Tokenizer
from hrm.evaluation.baselines import Baseline, commonest
from hrm.evaluation.evaluator import Evaluator
from hrm.evaluation.report import EvaluationReport
from hrm.evaluation.run import evaluate_file, fit_baselines
from hrm.inference.config import Inference, dtype_of
from schemas import HaltedBy, SQEHRMError, Verdict
from worker.cli.commands.convert import open_with_progress, refused_line_printer
from worker.cli.inference_options import (
    batch_size_option,
    device_option,
    dtype_option,
    halting_option,
)
from worker.cli.tables.evaluation import print_report
from worker.process import devices
from worker.settings import Settings

DEFAULT_BATCH_SIZE = {"cpu": 32, "cuda": 512}
"""More than a worker's slots: a file has no one who waits for a single answer."""

MAX_STEPS = 1000
"""Beyond this an example takes seconds, and the states have long settled."""

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_NEW_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("evaluate")
@click.option("--checkpoint", help="Name or path.  [default: SQE_CHECKPOINT or sqe-demo]")
@click.option(
    "--data-path",
    required=True,
    type=_FILE,
    help="JSONL of messages, bare pairs, or converted examples.",
)
@click.option("--train-data", type=_FILE, help="JSONL of training pairs, to count baselines from.")
@device_option
@batch_size_option
@halting_option
@click.option(
    "--max-steps",
    type=click.IntRange(1, MAX_STEPS),
    help="ACT steps, also above the trained ones.  [default: checkpoint's]",
)
@dtype_option(default="float32")
@click.option("--output", type=_NEW_FILE, help="The whole report as JSON.")
@click.option("--verdicts", type=_NEW_FILE, help="One verdict a line, in the data's order.")
@click.option("--strict", is_flag=True, help="Exit 1 if any line was refused.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
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
    """Evaluate a file with a checkpoint and report every figure that inference gives.

    Messages are converted as the checkpoint was trained: its word hash, its puzzle policy. A
    converted example is taken as it is: if it was converted with another word hash or policy than
    the checkpoint's, nothing in it shows that, and the figures are worth nothing.

    A line that cannot be evaluated is reported on stderr with its number, and the rest goes on.
    The screen shows the essential; --output and --json have everything.

    Baselines are guesses that never look at the input, counted from --train-data: the commonest
    target token, the commonest by position, and bigram, which goes on from its own last guess.
    Without --train-data, the first is taken from the checkpoint's record where it has one.
    """
    _check_files((data_path, train_data), output, verdicts)
    settings = Settings.from_env(checkpoint=checkpoint, device=device)
    pinned = _pin(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    loaded = load_checkpoint(find_checkpoint(settings.checkpoint, settings.checkpoint_dir))
    inference = Inference(
        slots=batch_size or DEFAULT_BATCH_SIZE["cuda" if pinned.is_cuda else "cpu"],
        halting=HaltedBy(halting),
        max_steps=max_steps,
        forward_dtype=dtype_of(dtype, pinned.torch_name),
    )
    evaluator = Evaluator(
        loaded,
        inference.open(loaded, pinned.torch_name),
        device=pinned.torch_name,
        worker=f"{socket.gethostname()}:{os.getpid()}",
    )
    reader = LineReader(settings.max_message_bytes)
    with contextlib.closing(evaluator):
        baselines = _baselines(train_data, evaluator, reader)
        report = _evaluate(data_path, evaluator, baselines, reader, verdicts)
    text = report.model_dump_json(indent=2)
    if output is not None:
        with _writing(output) as sink:
            sink.write(text.encode() + b"\n")
    if as_json:
        click.echo(text)
    else:
        print_report(report)
    refused = sum(report.lines.refused.values())
    if strict and refused:
        raise SQEHRMError(f"{data_path}: {refused} refused: mend the lines named, or drop --strict")


def _check_files(inputs: tuple[Path | None, ...], *outputs: Path | None) -> None:
    """Nothing that is read or written may be overwritten."""
    taken = [path.resolve() for path in inputs if path is not None]
    for path in outputs:
        if path is None:
            continue
        if path.resolve() in taken:
            raise click.UsageError(f"{path} is named twice: name another file to write")
        taken.append(path.resolve())


def _pin(name: str) -> devices.Device:
    try:
        device = devices.pin(name)
        devices.check(device)
    except devices.DeviceError as error:
        raise click.UsageError(str(error)) from None
    return device


def _baselines(
    train_data: Path | None, evaluator: Evaluator, reader: LineReader
) -> tuple[Baseline, ...]:
    checkpoint = evaluator.checkpoint
    if train_data is None:
        record = checkpoint.training
        if record is None:
            return ()
        return (commonest(record.target_token_counts, "the checkpoint's training targets"),)
    with _reading(train_data), open_with_progress(train_data, "Counting baselines") as source:
        baselines = fit_baselines(
            source,
            str(train_data),
            Tokenizer(checkpoint.conversion.word_hash),
            reader=reader,
            on_refused=refused_line_printer(train_data),
        )
    if not baselines:
        raise SQEHRMError(f"{train_data} holds no training pair: name another, or none")
    return baselines


def _evaluate(
    data_path: Path,
    evaluator: Evaluator,
    baselines: tuple[Baseline, ...],
    reader: LineReader,
    verdicts: Path | None,
) -> EvaluationReport:
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(_writing(verdicts)) if verdicts is not None else None
        stack.enter_context(_reading(data_path))
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
    """A bar of the bytes read, with what was found so far, on stderr where that is a terminal."""
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
        # A pipe has no size and no place in it.
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


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SQEHRMError(f"cannot read {path}: {error.strerror}") from None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[BinaryIO]:
    try:
        with replaced_file(path) as sink:
            yield sink
    except OSError as error:
        raise SQEHRMError(f"cannot write {path}: {error.strerror}") from None
