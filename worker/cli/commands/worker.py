"""`sqe-hrm worker`: evaluates messages until it is told to stop."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hrm.checkpoint.names import find_checkpoint, weights_file
from worker.broker import embedded
from worker.broker.keys import QUEUES
from worker.broker.urls import without_password
from worker.cli.options import (
    DEFAULT_STRATEGY,
    ListCommand,
    checkpoint_option,
    device_option,
    dtype_option,
    ensemble_options,
    max_steps_option,
    pin,
    worker_halting_option,
)
from worker.settings import Settings
from worker.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from worker.cli.serving import Serving


@click.command("worker", cls=ListCommand)
@checkpoint_option()
@ensemble_options(
    required=False, combiner_help="File of the stacking combiner, as saved by sqe-hrm ensemble."
)
@device_option()
@click.option(
    "--slots",
    type=int,
    help="Messages evaluated at once.  [default: SQE_SLOTS, or 4 per thread on cpu, 64 on cuda]",
)
@worker_halting_option()
@dtype_option(default="auto")
@max_steps_option(limit=None)
@click.option(
    "--metrics-port",
    type=int,
    help="Port of /metrics, /healthz and /readyz; 0 for a free one.  "
    "[default: SQE_METRICS_PORT or 9108]",
)
@click.option(
    "--queues",
    default=",".join(QUEUES),
    show_default=True,
    help="Queues to take messages from, the most urgent first.",
)
@click.option(
    "--threads",
    type=int,
    help="Number of CPU threads for torch.  [default: SQE_THREADS or one per core]",
)
def command(
    checkpoint: str | None,
    checkpoints: tuple[str, ...],
    weights: tuple[float, ...],
    strategy: str,
    combiner: Path | None,
    device: str | None,
    slots: int | None,
    halting: str | None,
    dtype: str,
    max_steps: int | None,
    metrics_port: int | None,
    queues: str,
    threads: int | None,
) -> None:
    """Evaluate messages from the queues until SIGTERM or Ctrl-C.

    With --checkpoints, several checkpoints answer as one, under a name and a digest of their own.

    Without SQE_REDIS_URL, the worker starts a Redis server that keeps its data in this folder.
    """
    _check_ensemble(checkpoint, checkpoints, weights, strategy, combiner)
    chosen = _chosen(queues)
    settings = Settings.from_env(
        checkpoint=checkpoint,
        device=device,
        slots=slots,
        halting=halting,
        metrics_port=metrics_port,
        threads=threads,
    )
    # Without a checkpoint nothing is started: no Redis, no port, no torch.
    for name in checkpoints or (settings.checkpoint,):
        weights_file(find_checkpoint(name, settings.checkpoint_dir))
    configure_logging()
    pinned = pin(settings.device, check=False)

    # After the device is pinned: it imports torch.
    from worker.cli.serving import Serving  # noqa: PLC0415

    serving = Serving(
        settings,
        pinned,
        members=checkpoints,
        weights=weights,
        strategy=strategy,
        combiner=combiner,
        max_steps=max_steps,
        dtype=dtype,
    )
    sys.exit(_serve(serving, chosen))


def _serve(serving: "Serving", queues: tuple[str, ...]) -> int:
    """Run the worker, with a Redis server of its own if none is set. Returns the exit status."""
    # A client's install has no metrics server, and shows the help all the same.
    from worker.process.run import run  # noqa: PLC0415

    settings = serving.settings
    with embedded.redis_url(settings.redis_url, start_if_missing=True) as redis_url:
        if settings.redis_url is None:
            logging.getLogger(__name__).info(
                "using the embedded Redis at %s", without_password(redis_url)
            )
        return run(
            redis_url=redis_url,
            settings=settings,
            device=serving.device,
            queues=queues,
            open_evaluator=serving.open_evaluator,
        )


def _chosen(queues: str) -> tuple[str, ...]:
    """The names in `--queues`."""
    chosen = tuple(name.strip() for name in queues.split(","))
    unknown = sorted(set(chosen) - set(QUEUES))
    if unknown:
        raise click.UsageError(f"no queue {unknown[0]!r}: there are {' and '.join(QUEUES)}")
    return chosen


def _check_ensemble(
    checkpoint: str | None,
    checkpoints: tuple[str, ...],
    weights: tuple[float, ...],
    strategy: str,
    combiner: Path | None,
) -> None:
    """Refuse what can be refused before torch is imported."""
    if checkpoints and checkpoint is not None:
        raise click.UsageError("give --checkpoint for one, or --checkpoints for several as one")
    if not checkpoints and (weights or combiner is not None or strategy != DEFAULT_STRATEGY):
        raise click.UsageError("--weights, --strategy and --combiner are for --checkpoints")
    if (combiner is not None) != (strategy == "stacking"):
        raise click.UsageError(
            "--strategy stacking and a --combiner that sqe-hrm ensemble saved go together"
        )
