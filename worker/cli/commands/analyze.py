"""`sqe-hrm analyze`: counts what a file of SQE messages or HRM examples contains."""

from pathlib import Path

import click

from hrm.data.analysis import analyze_file
from hrm.data.conversion import Converter
from worker.cli.files import read_with_progress, refused_line_printer
from worker.cli.options import (
    conversion_of,
    data_path_option,
    json_option,
    tokenizer_options,
)
from worker.cli.tables.analysis import print_statistics


@click.command("analyze")
@data_path_option()
@tokenizer_options
@json_option
def command(data_path: Path, as_json: bool, **conversion: object) -> None:  # noqa: FBT001
    """Count a file's messages, lengths, difficulties, categories and tokens.

    A line that is neither a message nor an example is reported on stderr with its number.
    """
    converter = Converter(conversion_of(**conversion))
    with read_with_progress(data_path, "Analyzing") as source:
        statistics = analyze_file(source, converter, on_refused=refused_line_printer(data_path))
    if as_json:
        click.echo(statistics.model_dump_json(indent=2))
        return
    print_statistics(data_path, statistics, converter.tokenizer.vocabulary)
