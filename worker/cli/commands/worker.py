"""`sqe-hrm worker`: evaluates messages until it is told to stop; and what running workers do."""

import contextlib
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from hrm.checkpoint.names import find_checkpoint, weights_file
from worker.broker import embedded
from worker.broker.keys import QUEUES
from worker.broker.urls import without_password
from worker.cli.options import (
    DEFAULT_STRATEGY,
    ListGroup,
    checkpoint_option,
    device_option,
    devices_option,
    dtype_option,
    ensemble_options,
    max_steps_option,
    pin,
    worker_halting_option,
)
from worker.cli.reload import reload
from worker.settings import Settings
from worker.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from worker.cli.serving import Serving

OF_THE_FLEET = {"device", "devices", "metrics_port"}
"""Options that the process above several workers keeps for itself."""


@click.group("worker", cls=ListGroup, invoke_without_command=True)
@checkpoint_option()
@ensemble_options(
    required=False, combiner_help="File of the stacking combiner, as saved by sqe-hrm ensemble."
)
@device_option()
@devices_option(default="  [default: SQE_DEVICES, or one worker on --device]")
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
@click.pass_context
def command(
    ctx: click.Context,
    checkpoint: str | None,
    checkpoints: tuple[str, ...],
    weights: tuple[float, ...],
    strategy: str,
    combiner: Path | None,
    device: str | None,
    devices: str | None,
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

    With --devices, this process starts the workers, starts them again when they end, and passes
    signals on. One that cannot start is given up, and the others go on.

    Exit status: 0 once everything in hand is finished, 1 if the worker cannot start, 2 if it was
    called wrongly, 75 if it could not go on and has to be started again.

    Without SQE_REDIS_URL, the worker starts a Redis server that keeps its data in this folder.

    SIGHUP loads the checkpoint anew, without a stop.
    """
    if ctx.invoked_subcommand is not None:
        for parameter in _given(ctx):
            raise click.UsageError(
                f"{parameter.opts[0]} before {ctx.invoked_subcommand}: its options follow its name"
            )
        return
    if device is not None and devices is not None:
        raise click.UsageError("give --device for one worker, or --devices for several")
    _check_ensemble(checkpoint, checkpoints, weights, strategy, combiner)
    chosen = _chosen(queues)
    settings = Settings.from_env(
        checkpoint=checkpoint,
        device=device,
        devices=devices,
        slots=slots,
        halting=halting,
        metrics_port=metrics_port,
        threads=threads,
    )
    # Without a checkpoint nothing is started: no Redis, no port, no torch.
    for name in checkpoints or (settings.checkpoint,):
        weights_file(find_checkpoint(name, settings.checkpoint_dir))
    configure_logging()
    # A worker that starts reads the latest checkpoint anyway; by default the signal would end it.
    signal.signal(signal.SIGHUP, lambda *_: None)
    if settings.devices is not None and device is None:
        sys.exit(_serve_fleet(settings, tuple(_passed_on(ctx))))
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


command.add_command(reload)


def _given(ctx: click.Context) -> Iterator[click.Parameter]:
    """The options of this call."""
    for parameter in ctx.command.params:
        if ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE:
            yield parameter


def _passed_on(ctx: click.Context) -> Iterator[str]:
    """The options of this call that each worker of a fleet gets, too."""
    for parameter in _given(ctx):
        name = parameter.name or ""
        if name in OF_THE_FLEET:
            continue
        values = ctx.params[name] if parameter.multiple else (ctx.params[name],)
        yield from (f"{parameter.opts[0]}={value}" for value in values)


def _serve_fleet(settings: Settings, options: tuple[str, ...]) -> int:
    """Run a worker for each device, and one Redis server for them if none is set."""
    # As for `_serve`.
    from worker.fleet.members import DevicesError, read_members  # noqa: PLC0415
    from worker.fleet.run import run  # noqa: PLC0415

    try:
        members = read_members(settings.devices or "")
    except DevicesError as error:
        raise click.UsageError(str(error)) from None
    with _redis_url(settings) as redis_url:
        end = run(redis_url=redis_url, settings=settings, members=members, options=options)
    if end.reason is not None:
        click.echo(f"sqe-hrm: error: {end.reason}", err=True)
    return end.status


@contextlib.contextmanager
def _redis_url(settings: Settings) -> Iterator[str]:
    """The Redis to use: the one that is set, or a server of this folder."""
    with embedded.redis_url(settings.redis_url, start_if_missing=True) as redis_url:
        if settings.redis_url is None:
            logging.getLogger(__name__).info(
                "using the embedded Redis at %s", without_password(redis_url)
            )
        yield redis_url


def _serve(serving: "Serving", queues: tuple[str, ...]) -> int:
    """Run the worker, with a Redis server of its own if none is set. Returns the exit status."""
    # A client's install has no metrics server, and shows the help all the same.
    from worker.process.run import run  # noqa: PLC0415

    with _redis_url(serving.settings) as redis_url:
        return run(
            redis_url=redis_url,
            settings=serving.settings,
            device=serving.device,
            queues=queues,
            read_model=serving.read_model,
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
