"""`sqe-hrm submit`: enqueues the messages of a file and collects their outcomes.

Knows lines and their outcomes. How a message gets to a worker and back is in `worker.client`; the
output is in `worker.cli.outcome_file`.
"""

import contextlib
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import click
import redis
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hrm.data.conversion import AcceptedPair
from hrm.data.files import LineReader, RefusedLine
from schemas import Rejection, SQEHRMError, SQEMessage, Verdict
from worker.broker.contract import CONNECT_TIMEOUT, SOCKET_TIMEOUT
from worker.broker.urls import connections
from worker.cli.backlog import Backlog
from worker.cli.files import check_outputs
from worker.cli.options import NEW_FILE, json_option, strict_option
from worker.cli.outcome_file import AnsweredLines, Write, appending, read_outcomes
from worker.client import BACKFILL_QUEUE, LIVE_QUEUE, Client, ResultTimeout
from worker.client.address import namespace, redis_url
from worker.settings import Settings

QUEUES = {"live": LIVE_QUEUE, "backfill": BACKFILL_QUEUE}

AT_ONCE = 4096
"""Messages without an outcome at a time. A file of any length then needs little memory here and in
Redis, and sixteen full batches keep several workers busy."""

LOOK_SECONDS = 2.0
"""Seconds without an outcome after which the queues are looked at, and then again: seldom enough
to be no load for Redis, and soon compared with any sensible `--timeout`."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A message of the file, and the number of its line, from 1."""

    number: int
    message: SQEMessage


@dataclass
class _Summary:
    sent: int = 0
    resumed: int = 0
    """Outcomes that were in the output at the start."""
    solved: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    bad_lines: int = 0
    checkpoints: set[str] = field(default_factory=set)
    """Names and digests of the checkpoints that made the verdicts."""

    def note(self, outcome: Verdict | Rejection) -> None:
        """Count an outcome."""
        if isinstance(outcome, Verdict):
            self.outcomes["verdict"] += 1
            self.solved += outcome.solved
            self.checkpoints.add(f"{outcome.checkpoint} ({outcome.checkpoint_digest[:12]})")
        else:
            self.outcomes["rejection"] += 1

    def as_dict(self) -> dict[str, int]:
        return {
            "sent": self.sent,
            "resumed": self.resumed,
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
@click.option(
    "--output",
    type=NEW_FILE,
    help="File to write the outcomes to as they come, as JSONL with the number of each line.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue --output: do not send lines again whose outcome is in it.",
)
@click.option(
    "--no-wait", is_flag=True, help="Return once enqueued. No outcome can be fetched afterwards."
)
@click.option(
    "--timeout",
    default=60.0,
    show_default=True,
    help="Seconds without progress after which to give up: no outcome, and no queue gets shorter.",
)
@strict_option("any line was refused or any message rejected")
@json_option
def command(
    data_path: Path,
    queue: str,
    agent_id: str,
    output: Path | None,
    resume: bool,  # noqa: FBT001 - a flag of the command line
    no_wait: bool,  # noqa: FBT001
    timeout: float,
    strict: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Enqueue the messages of a file and collect their outcomes.

    A line that is not a message is reported on stderr, and skipped. After a failure, a timeout or
    Ctrl-C, --output holds everything received, and --resume continues there.
    """
    if no_wait and output is not None:
        raise click.UsageError(
            "--no-wait returns before there are outcomes for --output: drop one of them"
        )
    if resume and (output is None or (output.exists() and not output.is_file())):
        raise click.UsageError("--resume reads --output: give a regular file")
    check_outputs((data_path,), (output,))
    summary = _Summary()
    answered = _resume(output, summary) if resume and output is not None else AnsweredLines()
    with contextlib.ExitStack() as stack:
        url = redis_url()
        client = stack.enter_context(Client(url))
        read_backlog = partial(Backlog.read, stack.enter_context(_store(url)), namespace())
        source = cast("BinaryIO", stack.enter_context(click.open_file(str(data_path), "rb")))
        stack.enter_context(_incomplete_if_it_fails(summary, output))
        write = (
            _write_nothing
            if output is None
            else stack.enter_context(appending(output, anew=not resume))
        )
        lines = _unanswered(_lines(source, agent_id, summary), answered)
        on_progress = _progress(stack)
        for window in _windows(lines):
            sent = client.submit_many(
                (line.message for line in window.values()),
                queue=QUEUES[queue],
                keep_result=0 if no_wait else None,
            )
            summary.sent += len(sent)
            on_progress(summary)
            if no_wait:
                continue
            for line, outcome in _outcomes(client, read_backlog, window, timeout):
                _report_outcome(line.number, outcome, summary, write)
                on_progress(summary)
    _report(summary, as_json=as_json, waited=not no_wait)
    if len(summary.checkpoints) > 1:
        click.echo(
            f"verdicts of several checkpoints: {', '.join(sorted(summary.checkpoints))}", err=True
        )
    if strict and (summary.bad_lines or summary.outcomes["rejection"]):
        sys.exit(1)


# The file.


def _lines(source: BinaryIO, agent_id: str, summary: _Summary) -> Iterator[_Line]:
    """Yield every message of `source`; count and report the lines that are none."""
    reader = LineReader(Settings.from_env().max_message_bytes)
    for index, content in reader.messages(source):
        number = index + 1
        if isinstance(content, RefusedLine):
            summary.bad_lines += 1
            click.echo(f"line {number}: {content.reason}: {content.detail}", err=True)
        elif isinstance(content, SQEMessage):
            yield _Line(number, content)
        else:
            try:
                yield _Line(number, _message(number, agent_id, content))
            except SQEHRMError as error:
                # The line is sound, so it is the agent's id that breaks the contract.
                raise click.UsageError(f"--agent-id, at line {number}: {error}") from None


def _message(number: int, agent_id: str, pair: AcceptedPair) -> SQEMessage:
    """Make a bare pair a message whose id is the same in every run over the same file.

    A second run then finds the pair's outcome in the output, and is not counted again. The number
    makes the ids of equal lines distinct.
    """
    fields = pair.model_dump(exclude={"alternative"})
    content = json.dumps([number, agent_id, fields])
    digest = hashlib.sha256(content.encode()).hexdigest()
    return SQEMessage.create(message_id=f"line-{number}-{digest[:32]}", agent_id=agent_id, **fields)


def _unanswered(lines: Iterator[_Line], answered: AnsweredLines) -> Iterator[_Line]:
    """Yield the lines that have no outcome yet. Raises `OutcomeFileError` for another file's."""
    return (line for line in lines if not answered.has(line.number, line.message.message_id))


def _windows(lines: Iterator[_Line]) -> Iterator[dict[str, _Line]]:
    """Group lines into windows of up to `AT_ONCE` by message id, each id once in a window.

    Outcomes lie in Redis by message id. If an id comes again in the file, its second line therefore
    waits for the next window, after the first line's outcome.
    """
    window: dict[str, _Line] = {}
    for line in lines:
        if len(window) == AT_ONCE or line.message.message_id in window:
            yield window
            window = {}
        window[line.message.message_id] = line
    if window:
        yield window


# The outcomes.


def _store(url: str) -> redis.Redis:
    """Make a connection that looks at the queues; it connects when it is used."""
    pool = connections(url, socket_timeout=SOCKET_TIMEOUT, socket_connect_timeout=CONNECT_TIMEOUT)
    return redis.Redis.from_pool(pool)


def _outcomes(
    client: Client,
    read_backlog: Callable[[], Backlog],
    window: Mapping[str, _Line],
    timeout: float,
) -> Iterator[tuple[_Line, Verdict | Rejection]]:
    """Yield the outcome of each line of `window` as it arrives.

    Raises `ResultTimeout` after `timeout` seconds without progress: no outcome, no task taken from
    a queue, none finished. The outcomes of a batch come all at once, perhaps later than that.
    """
    waiting = set(window)
    backlog = read_backlog()
    last = time.monotonic()
    while waiting:
        pause = min(LOOK_SECONDS, max(0.0, last + timeout - time.monotonic()))
        try:
            for message_id, outcome in client.arrivals(list(waiting), pause):
                waiting.remove(message_id)
                yield window[message_id], outcome
                last = time.monotonic()
        except ResultTimeout:
            before, backlog = backlog, read_backlog()
            if backlog.shrank_since(before):
                last = time.monotonic()
            elif time.monotonic() >= last + timeout:
                raise ResultTimeout(
                    f"no outcome for {len(waiting)} messages, and no progress for {timeout:g} s: "
                    f"{backlog}"
                ) from None


def _report_outcome(
    number: int,
    outcome: Verdict | Rejection,
    summary: _Summary,
    write: Write,
) -> None:
    """Count the outcome of the line `number`, write it, and print a rejection on stderr."""
    if isinstance(outcome, Rejection):
        click.echo(f"line {number}: {outcome.reason}: {outcome.detail}", err=True)
    write(number, outcome)
    summary.note(outcome)


@contextlib.contextmanager
def _incomplete_if_it_fails(summary: _Summary, output: Path | None) -> Iterator[None]:
    """Say on stderr how far the block got if an error or Ctrl-C ends it."""
    try:
        yield
    except (SQEHRMError, KeyboardInterrupt):
        if summary.sent:
            click.echo(_describe(summary, output), err=True)
        raise


def _describe(summary: _Summary, output: Path | None) -> str:
    """Word how far a run got that did not end well."""
    received = summary.outcomes.total()
    text = f"incomplete: {received} outcomes of {summary.resumed + summary.sent} messages"
    if output is None:
        return text
    return text + (
        f", all in {output}: --resume continues there" if received else f", {output} is unchanged"
    )


def _resume(output: Path, summary: _Summary) -> AnsweredLines:
    """Read and count the outcomes in `output`. Raises `OutcomeFileError`."""
    answered = AnsweredLines()
    for number, outcome in read_outcomes(output):
        answered.add(number, outcome.message_id)
        summary.note(outcome)
        summary.resumed += 1
    click.echo(f"{output} has {summary.resumed} outcomes: their lines are not sent again", err=True)
    return answered


def _write_nothing(_number: int, _outcome: Verdict | Rejection) -> None:
    """Stand in for the output without `--output`."""


# The terminal.


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
    return lambda summary: bar.update(
        task, total=summary.sent + summary.resumed, completed=summary.outcomes.total()
    )


def _report(summary: _Summary, *, as_json: bool, waited: bool) -> None:
    figures = summary.as_dict()
    if as_json:
        click.echo(json.dumps(figures))
        return
    shown = figures if waited else {"sent": figures["sent"], "bad_lines": figures["bad_lines"]}
    if not summary.resumed:
        shown.pop("resumed", None)
    click.echo(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in shown.items()))
