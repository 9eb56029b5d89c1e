"""`sqe-hrm submit`: enqueues the messages of a file and collects their verdicts."""

import contextlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hrm.data.files import LineReader, RefusedLine
from schemas import Rejection, SQEHRMError, SQEMessage, Verdict
from worker.cli.files import check_outputs, writing
from worker.cli.options import NEW_FILE, json_option, strict_option
from worker.client import BACKFILL_QUEUE, LIVE_QUEUE, Client
from worker.settings import Settings

QUEUES = {"live": LIVE_QUEUE, "backfill": BACKFILL_QUEUE}

AT_ONCE = 4096
"""Messages without an outcome at a time. A file of any length then needs little memory here and in
Redis, and sixteen full batches keep several workers busy."""


@dataclass
class _Summary:
    sent: int = 0
    solved: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    bad_lines: int = 0

    def as_dict(self) -> dict[str, int]:
        return {
            "sent": self.sent,
            "verdicts": self.outcomes["verdict"],
            "solved": self.solved,
            "rejected": self.outcomes["rejection"],
            "bad_lines": self.bad_lines,
        }


@click.command("submit")
@click.option(
    "--data-path",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True),
    help="JSONL file of messages or prompt-completion pairs; - for standard input.",
)
@click.option(
    "--queue",
    type=click.Choice(list(QUEUES)),
    default="backfill",
    show_default=True,
    help="Queue to send to; workers take from live first.",
)
@click.option(
    "--agent-id", default="file", show_default=True, help="Agent id of lines that have none."
)
@click.option("--output", type=NEW_FILE, help="File to write the outcomes to, as JSONL.")
@click.option(
    "--no-wait", is_flag=True, help="Return once enqueued. Redis keeps the verdicts for a while."
)
@click.option(
    "--timeout",
    default=60.0,
    show_default=True,
    help="Seconds without any outcome after which to give up.",
)
@strict_option("any line was refused or any message rejected")
@json_option
def command(
    data_path: Path,
    queue: str,
    agent_id: str,
    output: Path | None,
    no_wait: bool,  # noqa: FBT001 - a flag of the command line
    timeout: float,
    strict: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Enqueue the messages of a file and collect their verdicts.

    A line that is not a message is reported on stderr, and skipped.
    """
    if no_wait and output is not None:
        raise click.UsageError(
            "--no-wait returns before there are outcomes for --output: drop one of them"
        )
    check_outputs((data_path,), (output,))
    summary = _Summary()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client())
        source = cast("BinaryIO", stack.enter_context(click.open_file(str(data_path), "rb")))
        sink = stack.enter_context(writing(output)) if output is not None else None
        messages = _messages(source, agent_id, summary)
        on_progress = _progress(stack)
        while batch := list(itertools.islice(messages, AT_ONCE)):
            ids = client.submit_many(batch, queue=QUEUES[queue])
            summary.sent += len(ids)
            on_progress(summary)
            if no_wait:
                continue
            for outcome in client.results(ids, timeout):
                _note(outcome, summary, sink)
                on_progress(summary)
    _report(summary, as_json=as_json, waited=not no_wait)
    if strict and (summary.bad_lines or summary.outcomes["rejection"]):
        sys.exit(1)


def _messages(source: BinaryIO, agent_id: str, summary: _Summary) -> Iterator[SQEMessage]:
    reader = LineReader(Settings.from_env().max_message_bytes)
    for index, content in reader.messages(source):
        if isinstance(content, RefusedLine):
            summary.bad_lines += 1
            click.echo(f"line {content.number}: {content.reason}: {content.detail}", err=True)
        elif isinstance(content, SQEMessage):
            yield content
        else:
            try:
                yield SQEMessage.create(agent_id=agent_id, **content.model_dump())
            except SQEHRMError as error:
                # The line is sound, so it is the agent's id that breaks the contract.
                raise click.UsageError(f"--agent-id, at line {index + 1}: {error}") from None


def _note(outcome: Verdict | Rejection, summary: _Summary, sink: BinaryIO | None) -> None:
    if isinstance(outcome, Verdict):
        summary.outcomes["verdict"] += 1
        summary.solved += outcome.solved
    else:
        summary.outcomes["rejection"] += 1
        click.echo(f"{outcome.message_id}: {outcome.reason}: {outcome.detail}", err=True)
    if sink is not None:
        sink.write(outcome.model_dump_json().encode() + b"\n")


def _progress(stack: contextlib.ExitStack) -> Callable[[_Summary], None]:
    """A function that shows the summary so far in a progress bar, if stderr is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return lambda _summary: None
    bar = stack.enter_context(
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
    )
    task = bar.add_task("messages")
    return lambda summary: bar.update(task, total=summary.sent, completed=summary.outcomes.total())


def _report(summary: _Summary, *, as_json: bool, waited: bool) -> None:
    figures = summary.as_dict()
    if as_json:
        click.echo(json.dumps(figures))
        return
    shown = figures if waited else {"sent": figures["sent"], "bad_lines": figures["bad_lines"]}
    click.echo(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in shown.items()))
