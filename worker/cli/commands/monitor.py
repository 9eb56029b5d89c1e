"""`sqe-hrm monitor`: serves what no worker can show, and sends messages with a known answer."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hrm.checkpoint.names import CheckpointError, find_checkpoint
from hrm.checkpoint.solved import ACCEPTED_PAIRS, read_solved_texts
from worker.broker import embedded
from worker.cli.options import checkpoint_option
from worker.settings import Settings
from worker.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from worker.monitor.canary import Question

MESSAGES = "messages.jsonl"
"""File of accepted messages, beside the weights of a shipped checkpoint."""

logger = logging.getLogger(__name__)


@click.command("monitor")
@checkpoint_option()
@click.option(
    "--canary",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"JSONL file of messages that the checkpoint solves.  [default: {MESSAGES} beside the "
    "checkpoint, if there is one]",
)
@click.option(
    "--metrics-port",
    type=int,
    help="Port of /metrics, /healthz and /readyz; 0 for a free one.  "
    "[default: SQE_MONITOR_PORT or 9109]",
)
def command(checkpoint: str | None, canary: Path | None, metrics_port: int | None) -> None:
    """Show the queues, agents and streams until SIGTERM or Ctrl-C; run one beside all workers.

    Once a minute (SQE_CANARY_SECONDS), a message with a known answer goes through the live queue,
    and its outcome is checked.
    """
    # A client's install has no metrics server, and shows the help all the same.
    from worker.monitor.run import run  # noqa: PLC0415

    settings = Settings.from_env(checkpoint=checkpoint, monitor_port=metrics_port)
    configure_logging()
    canaries = _canaries(settings, canary) if settings.canary_seconds else []
    with embedded.redis_url(settings.redis_url, start_if_missing=False) as redis_url:
        sys.exit(run(redis_url=redis_url, settings=settings, canaries=canaries))


def _canaries(settings: Settings, file: Path | None) -> "list[Question]":
    """Read the canaries from `file`, or from beside the checkpoint. Raises `CanaryError`."""
    from worker.monitor.canary import read_canaries  # noqa: PLC0415 - the same

    record = None
    try:
        found = find_checkpoint(settings.checkpoint, settings.checkpoint_dir)
        folder = found if found.is_dir() else found.parent
        file = file or folder / MESSAGES
        record = read_solved_texts(folder / ACCEPTED_PAIRS)
    except CheckpointError as error:
        logger.warning("%s: %s", "no canaries are sent" if file is None else "canaries", error)
    if file is None:
        return []
    if not file.is_file():
        logger.warning("no canaries are sent: no %s: name a file with --canary", file)
        return []
    canaries = read_canaries(file, record)
    if not canaries:
        logger.warning("no canaries are sent: %s solves none of %s", settings.checkpoint, file)
        return []
    proven = sum(each.solved_by is not None for each in canaries)
    logger.info(
        "%d canaries in %s, one every %g s; %s",
        *(len(canaries), file, settings.canary_seconds),
        f"{settings.checkpoint} is recorded to solve {proven} of them, and another counts once it "
        "was solved",
    )
    return canaries
