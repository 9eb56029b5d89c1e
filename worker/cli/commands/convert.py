"""`sqe-hrm convert`: a file of SQE messages into a file of HRM examples."""

import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import click
import rich.progress
from rich.console import Console

from hrm.data.config import ConversionConfig, PuzzlePolicy, WordHash
from hrm.data.conversion import Converter
from hrm.data.files import (
    BUFFER_BYTES,
    ConvertedFile,
    LineReader,
    RefusedLine,
    convert_file,
    replaced_file,
)
from schemas import DEFAULT_MAX_MESSAGE_BYTES, SQEHRMError

STDOUT = Path("-")


@contextmanager
def open_with_progress(path: Path, description: str) -> Iterator[BinaryIO]:
    """`path` to read, with a bar of the bytes read on stderr where that is a terminal."""
    with (
        rich.progress.open(
            path,
            "rb",
            buffering=0,
            description=description,
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        ) as raw,
        # The bar sits below the buffer, so that it is told of blocks and not of every line.
        # It is a raw stream, though declared as any binary file.
        io.BufferedReader(raw, BUFFER_BYTES) as source,  # type: ignore[type-var]
    ):
        yield source


def refused_line_printer(path: Path) -> Callable[[RefusedLine], None]:
    """Prints a refused line of `path` on stderr, as compilers name a line."""

    def print_line(line: RefusedLine) -> None:
        click.echo(f"{path}:{line.number}: {line.reason}: {line.detail}", err=True)

    return print_line


def _open_output(path: Path) -> AbstractContextManager[BinaryIO]:
    if path == STDOUT:
        return nullcontext(sys.stdout.buffer)
    return replaced_file(path)


def _print_summary(
    result: ConvertedFile, seconds: float, *, to_stderr: bool, as_json: bool
) -> None:
    refused = result.refused.total()
    rate = result.converted / seconds
    if as_json:
        text = json.dumps(
            {
                "converted": result.converted,
                "refused": refused,
                "refused_by_reason": dict(sorted(result.refused.items())),
                "seconds": round(seconds, 6),
                "messages_per_second": round(rate, 1),
            }
        )
    else:
        text = (
            f"{result.converted} converted, {refused} refused, {seconds:.2f} s, "
            f"{rate:,.0f} messages/s"
        )
    click.echo(text, err=to_stderr)


@click.command("convert")
@click.option(
    "--data-path",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSONL file of messages, or of bare {prompt, completion} pairs.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="JSONL file of examples to write; - for standard output.",
)
@click.option(
    "--word-hash",
    type=click.Choice(WordHash, case_sensitive=False),
    default=WordHash.MD5.value,
    show_default=True,
    help="Digest for words that are not in the vocabulary.",
)
@click.option(
    "--puzzle-policy",
    type=click.Choice(PuzzlePolicy, case_sensitive=False),
    default=PuzzlePolicy.LINE_INDEX.value,
    show_default=True,
    help="Puzzle id of a message that has none.",
)
@click.option(
    "--puzzle-space",
    type=click.IntRange(min=1),
    default=ConversionConfig().puzzle_space,
    show_default=True,
    help="How many puzzle ids the policy gives.",
)
@click.option(
    "--max-message-bytes",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_MESSAGE_BYTES,
    show_default=True,
    help="Limit of a prompt and its completion together.",
)
@click.option("--strict", is_flag=True, help="Exit 1 if any line was refused.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    data_path: Path,
    output: Path,
    word_hash: WordHash,
    puzzle_policy: PuzzlePolicy,
    puzzle_space: int,
    max_message_bytes: int,
    strict: bool,  # noqa: FBT001 - click passes flags by name
    as_json: bool,  # noqa: FBT001
) -> None:
    """Convert SQE messages into HRM examples, line by line.

    A line that holds no message is reported on stderr with its number, and the rest goes on. The
    summary goes to stdout, or to stderr where stdout has the examples.
    """
    if output.exists() and output.samefile(data_path):
        raise click.UsageError(f"--output {output} is the data itself: name another file")
    config = ConversionConfig(
        word_hash=word_hash, puzzle_policy=puzzle_policy, puzzle_space=puzzle_space
    )
    started = time.perf_counter()
    try:
        with open_with_progress(data_path, "Converting") as source, _open_output(output) as sink:
            result = convert_file(
                source,
                sink,
                Converter(config),
                reader=LineReader(max_message_bytes),
                on_refused=refused_line_printer(data_path),
            )
            sink.flush()
    except OSError as error:
        raise SQEHRMError(f"cannot convert {data_path} to {output}: {error.strerror}") from None
    seconds = time.perf_counter() - started
    _print_summary(result, seconds, to_stderr=output == STDOUT, as_json=as_json)
    if strict and result.refused:
        raise SQEHRMError(
            f"{data_path}: {result.refused.total()} refused: mend the lines named, or drop --strict"
        )
