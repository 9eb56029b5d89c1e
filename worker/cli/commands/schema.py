"""`sqe-hrm schema`: prints the JSON Schemas of the wire contract."""

from pathlib import Path

import click

from schemas.publish import MODELS, json_schema, publish


@click.command("schema")
@click.argument("name", required=False, type=click.Choice(list(MODELS)))
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write all schemas to.",
)
def command(name: str | None, output: Path | None) -> None:
    """Print the JSON Schema called NAME, or write all of them with --output."""
    if (name is None) == (output is None):
        raise click.UsageError(f"give one of {', '.join(MODELS)}, or --output FOLDER for all")
    if name is not None:
        click.echo(json_schema(name), nl=False)
        return
    assert output is not None  # noqa: S101 - exactly one is given
    for file in publish(output):
        click.echo(file)
