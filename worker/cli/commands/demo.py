"""`sqe-hrm demo`: shows the whole path of a message on one machine, in half a minute."""

import contextlib
import math
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console

from hrm.checkpoint.names import checkpoint_name, find_checkpoint
from worker.broker import embedded
from worker.broker.urls import without_password
from worker.cli.options import (
    checkpoint_option,
    data_path_option,
    device_option,
    devices_option,
    worker_halting_option,
)
from worker.demo.tally import Tally
from worker.demo.traffic import Mixture, read_accepted, traffic
from worker.demo.view import live_view, summary
from worker.settings import Settings

MESSAGES = "messages.jsonl"
"""File of accepted messages, beside the weights of a shipped checkpoint."""

SHARE = click.FloatRange(0, 1)


@click.command("demo")
@checkpoint_option(default="sqe-demo")
@data_path_option(
    f"JSONL file of accepted messages.  [default: {MESSAGES} beside the checkpoint]",
    required=False,
)
@click.option(
    "--seconds",
    default=30.0,
    show_default=True,
    type=click.FloatRange(1),
    help="How long to send messages.",
)
@click.option("--forever", is_flag=True, help="Send messages until Ctrl-C.")
@click.option(
    "--changed",
    default=0.3,
    show_default=True,
    type=SHARE,
    help="Share of messages with a single change: a word, a number or the ending.",
)
@click.option(
    "--malformed",
    default=0.1,
    show_default=True,
    type=SHARE,
    help="Share of messages that cannot be evaluated.",
)
@click.option(
    "--in-flight",
    default=16,
    show_default=True,
    type=click.IntRange(1),
    help="Messages that the agent has unanswered at a time.",
)
@device_option(default="cpu")
@devices_option(default="  [default: one on --device]")
@worker_halting_option(default="auto")
@click.option(
    "--metrics-port",
    default=0,
    show_default=True,
    help="Port of the worker's /metrics; 0 for a free one.",
)
@click.option("--seed", default=0, show_default=True, help="Seed for all random choices.")
def command(
    checkpoint: str,
    data_path: Path | None,
    seconds: float,
    forever: bool,  # noqa: FBT001 - a flag of the command line
    changed: float,
    malformed: float,
    in_flight: int,
    device: str,
    devices: str | None,
    halting: str,
    metrics_port: int,
    seed: int,
) -> None:
    """Start Redis and a worker, and send it known, changed and malformed messages.

    Every figure comes from inference with the checkpoint. The exit status is 0 if every message
    had exactly one outcome and the worker's own counters agree.
    """
    # A client's install cannot read /metrics, and shows the help all the same.
    from worker.demo.session import exchange, running_monitor, running_worker  # noqa: PLC0415

    if changed + malformed > 1:
        raise click.UsageError("--changed and --malformed add up to more than 1: lower one of them")
    settings = Settings.from_env()
    found = find_checkpoint(checkpoint, settings.checkpoint_dir)
    messages = data_path or (found if found.is_dir() else found.parent) / MESSAGES
    if not messages.is_file():
        raise click.UsageError(f"no {messages.absolute()}: give accepted messages with --data-path")
    accepted = read_accepted(messages)
    console = Console()
    options = ["--checkpoint", checkpoint, "--halting", halting]
    options += ["--device", device] if devices is None else ["--devices", devices]
    with contextlib.ExitStack() as stack:
        with console.status("starting Redis, a worker and the monitor"):
            started = time.monotonic()
            # An empty Redis of its own, so that nobody else's messages are touched or counted.
            embedded.DEFAULT_DATA_DIR.mkdir(exist_ok=True)
            folder = tempfile.TemporaryDirectory(prefix="demo-", dir=embedded.DEFAULT_DATA_DIR)
            redis_url = stack.enter_context(embedded.start(Path(stack.enter_context(folder)))).url
            worker = stack.enter_context(running_worker(redis_url, metrics_port, options))
            canary = ["--canary", str(messages)]
            monitor = stack.enter_context(running_monitor(redis_url, canary))
        workers = "a worker" if devices is None else "workers"
        console.print(
            f"Redis at {without_password(redis_url)}, {workers} with {checkpoint_name(found)} "
            f"on {devices or device}, ready after {time.monotonic() - started:.0f} s, "
            f"{worker.url}/metrics; the monitor, {monitor.url}/metrics",
            highlight=False,
            soft_wrap=True,
        )
        duration = math.inf if forever else seconds
        sending = traffic(accepted, Mixture(changed, malformed), seed)
        tally = Tally()
        with live_view(console, f"{len(accepted)} accepted messages", duration) as show:
            account = exchange(
                redis_url,
                worker,
                monitor,
                sending,
                tally,
                seconds=duration,
                in_flight=in_flight,
                on_change=show,
            )
    console.print(summary(tally, account), highlight=False)
    if not account.adds_up:
        sys.exit(1)
