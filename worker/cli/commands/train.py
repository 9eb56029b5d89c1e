"""`sqe-hrm train`: trains a checkpoint on a file of accepted messages."""

import shlex
import sys
from functools import partial
from pathlib import Path

import click

from hrm.checkpoint.names import check_unpromoted
from hrm.training.answers import ContradictionError
from hrm.training.options import OptionsError, TrainingOptions
from hrm.training.run import TrainingRun
from hrm.training.seeds import SeedRuns, seeds_record
from hrm.training.setup import prepare_run
from hrm.training.stop import InterruptedRunError, StopAskedError, StopRequest
from schemas import SQEHRMError
from worker.cli.options import use_device
from worker.cli.stopping import SIGNALLED, asked_by_signals
from worker.cli.tables.seeds import print_seeds
from worker.cli.tables.training import (
    apart_lines,
    plan_lines,
    start_line,
    summary,
    training_display,
)
from worker.cli.training_options import options_of, training_options, usage_error
from worker.process import devices
from worker.settings import Settings


@click.command("train")
@training_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    data_path: Path,
    output: Path,
    resume: bool,  # noqa: FBT001 - click passes flags by name
    seeds: int | None,
    device: str | None,
    **_: object,
) -> None:
    """Train a checkpoint until it solves the accepted messages, and keep the best weights.

    --output becomes a checkpoint of the best weights so far. Beside them are step_N folders to
    resume from, curve.jsonl with every step, measured.json, and at the end training.png.

    Without --steps, a run is as long as its number of messages asks for, and --puzzle-space as
    large; a warning says if given numbers are too small. Once the speed is known, the time is
    estimated.

    Training stops after --steps, or when two measurements in a row find every message solved and
    the Q head right under both halting rules, and a mean halting step under q of at most 3/8 of
    the maximum (6 of 16). The best weights are those that solve most messages, then those with
    most tokens and a Q head right, then those that halt earliest; held-out messages are not
    considered. A sample is measured while training, everything at the end.

    Two lines that give one prompt different completions contradict each other. They are named, and
    nothing is trained, unless the completions are declared as accepted beside each other
    ("alternative": true in the line of a pair) or --contradictions says how to take them.

    Ctrl-C, SIGTERM and the end of the terminal save the state after the current step, from which
    --resume goes on.

    With --seeds, --output holds a run for each seed, and measured.json has the figures of all.

    --resume needs only --data-path and --output: it uses the options of the run. Options that
    would change its steps are refused, --steps included, because the learning rates fall towards
    the last step. To train further, start a run with --init-from.

    --init-from trains on the accepted pairs of that checkpoint, too, so that nothing is forgotten;
    the new checkpoint holds all of them. A line that contradicts one of them is named as above.
    --forget trains on the new messages alone.
    """
    settings = Settings.from_env(device=device)
    check_unpromoted(output, settings.checkpoint_dir)
    pinned = use_device(settings)
    options, policy = options_of(ctx)
    stop = StopRequest()

    def prepare(folder: Path, options: TrainingOptions, resume: bool) -> TrainingRun:  # noqa: FBT001
        try:
            with stop.at_once():
                return prepare_run(
                    data_path,
                    folder,
                    options,
                    policy,
                    device=pinned.torch_name,
                    resume=resume,
                    checkpoint_dir=settings.checkpoint_dir,
                    command=shlex.join(["sqe-hrm", *sys.argv[1:]]),
                )
        except StopAskedError:
            stopped = f"{folder}: stopped before it began: nothing has changed"
            raise InterruptedRunError(stopped, 0) from None

    with asked_by_signals(stop) as signals:
        try:
            record = seeds_record(output, options, seeds, resume=resume)
            if record is None and (seeds or 1) == 1:
                _train(prepare(output, options, resume), pinned, stop)
            else:
                runs = SeedRuns(output, prepare)
                train = partial(_train, device=pinned, stop=stop)
                results = runs.train(record, options, seeds or 1, train, _warn)
                print_seeds(output, results)
        except OptionsError as error:
            raise usage_error(error) from None
        except ContradictionError as error:
            click.echo("\n".join(error.named), err=True)
            raise
        except InterruptedRunError as interrupted:
            click.echo(interrupted, err=True)
            ctx.exit(SIGNALLED + signals[0])


def _warn(error: SQEHRMError) -> None:
    click.echo(f"sqe-hrm: warning: {error}", err=True)


def _train(run: TrainingRun, device: devices.Device, stop: StopRequest) -> None:
    trainer = run.trainer
    with training_display(run) as display:
        for line in (start_line(run, device.name), *run.notes, *plan_lines(run)):
            display.say(line)
        best = run.train(on_step=display.on_step, on_measurement=display.on_measurement, stop=stop)
    click.echo(
        f"{run.folder}: stopped after {trainer.step_count} steps ({run.progress.stopped}), "
        f"best is step {best.step}: {summary(best, len(run.training))}"
    )
    for line in apart_lines(run):
        click.echo(f"{run.folder}: {line}")
