"""`sqe-hrm convert`: turns a file of SQE messages into a file of HRM examples."""

import json
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

import click

from hrm.data.config import ConversionConfig, PuzzlePolicy
from hrm.data.conversion import Converter
from hrm.data.files import ConvertedFile, LineReader, convert_file, replaced_file
from schemas import DEFAULT_MAX_MESSAGE_BYTES, SQEHRMError
from worker.cli.files import (
    check_outputs,
    check_strict,
    open_with_progress,
    refused_line_printer,
)
from worker.cli.options import (
    conversion_of,
    data_path_option,
    json_option,
    strict_option,
    tokenizer_options,
)

STDOUT = Path("-")


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
@data_path_option("JSONL file of messages or prompt-completion pairs.")
@click.option(
    "--output",
    required=True,
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="JSONL file to write the examples to; - for standard output.",
)
@tokenizer_options
@click.option(
    "--puzzle-policy",
    type=click.Choice([PuzzlePolicy.LINE_INDEX.value, PuzzlePolicy.PROMPT_HASH.value]),
    default=PuzzlePolicy.LINE_INDEX.value,
    show_default=True,
    help="Source of the puzzle id of a message that has none.",
)
@click.option(
    "--puzzle-space",
    type=click.IntRange(min=1),
    default=ConversionConfig().puzzle_space,
    show_default=True,
    help="Number of puzzle ids that the policy assigns.",
)
@click.option(
    "--max-message-bytes",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_MESSAGE_BYTES,
    show_default=True,
    help="Largest size of a prompt and its completion together.",
)
@strict_option()
@json_option
def command(
    data_path: Path,
    output: Path,
    max_message_bytes: int,
    strict: bool,  # noqa: FBT001 - click passes flags by name
    as_json: bool,  # noqa: FBT001
    **conversion: object,
) -> None:
    """Convert SQE messages into HRM examples, line by line.

    A line that is not a message is reported on stderr with its number, and skipped. The summary
    goes to stdout, or to stderr if the examples go to stdout.
    """
    if output != STDOUT:
        check_outputs((data_path,), (output,))
    config = conversion_of(**conversion)
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
    if strict:
        check_strict(data_path, result.refused.total())
