"""`sqe-hrm drift-test`: tells which changes of an agent's answers a checkpoint would notice."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hrm.data.files import BUFFER_BYTES, LineReader
from hrm.evaluation.drift import (
    CACHED_PREDICTIONS,
    CHANGES_PER_KIND,
    DriftOptions,
    DriftReport,
    drift_test,
)
from hrm.evaluation.evaluator import Evaluator
from worker.cli.files import (
    check_outputs,
    check_rereadable,
    reading,
    refused_line_printer,
    write_text,
)
from worker.cli.opening import open_evaluator
from worker.cli.options import (
    FILE,
    checkpoint_option,
    file_inference_options,
    json_option,
    report_option,
)
from worker.cli.tables.drift import print_drift
from worker.settings import Settings


@click.command("drift-test")
@click.argument("data_path", metavar="FILE", type=FILE)
@checkpoint_option()
@file_inference_options
@click.option(
    "--changes-per-kind",
    default=CHANGES_PER_KIND,
    show_default=True,
    type=click.IntRange(1),
    help="Limit of changes of each kind. If FILE has more places for a kind, this many are drawn, "
    "every place of its known messages with the same probability.",
)
@click.option(
    "--examples",
    default=0,
    show_default=True,
    type=click.IntRange(0, 100),
    help="Number of wrong judgements of each kind to show. They contain words of the messages.",
)
@click.option("--seed", default=0, show_default=True, help="Seed for all random choices.")
@report_option
@json_option
def command(
    data_path: Path,
    checkpoint: str | None,
    device: str | None,
    batch_size: int | None,
    halting: str,
    max_steps: int | None,
    dtype: str,
    changes_per_kind: int,
    examples: int,
    seed: int,
    output: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes flags by name
) -> None:
    """Change accepted messages in many ways, and count the changes that a checkpoint misses.

    FILE is a JSONL file of messages or prompt-completion pairs that the checkpoint was trained on.
    Each change is a single one, at any place of a completion: a word, a number, a sentence, an
    ending. Every changed completion is evaluated as if an agent had sent it. It is missed if the
    message is still solved. Changes of case, white space, line breaks and Unicode form are harmless
    and should raise no alarm.

    Only known messages that raise no alarm unchanged are tested; the others are counted.
    """
    check_rereadable((data_path,))
    check_outputs((data_path,), (output,))
    settings = Settings.from_env(checkpoint=checkpoint, device=device)
    evaluator = open_evaluator(
        settings,
        batch_size=batch_size,
        halting=halting,
        max_steps=max_steps,
        dtype=dtype,
        cached_predictions=CACHED_PREDICTIONS,
    )
    options = DriftOptions(changes_per_kind, examples, seed)
    with contextlib.closing(evaluator):
        report = _test(data_path, evaluator, options, LineReader(settings.max_message_bytes))
    text = report.model_dump_json(indent=2)
    if output is not None:
        write_text(output, text)
    if as_json:
        click.echo(text)
    else:
        print_drift(report)


def _test(
    data_path: Path, evaluator: Evaluator, options: DriftOptions, reader: LineReader
) -> DriftReport:
    with (
        reading(data_path),
        data_path.open("rb", buffering=BUFFER_BYTES) as source,
        _progress() as on_change,
    ):
        return drift_test(
            source,
            str(data_path),
            evaluator,
            options,
            reader=reader,
            on_refused=refused_line_printer(data_path),
            on_change=on_change,
        )


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A function that shows the changes done, of those planned, on stderr if it is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("Changing", total=None)
        yield lambda done, planned: progress.update(task, completed=done, total=planned)
