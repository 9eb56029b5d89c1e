"""`sqe-hrm ensemble`: evaluates several checkpoints as one, and each of them alone."""

from pathlib import Path

import click

from hrm.data.files import LineReader
from hrm.ensemble.combiners import Strategy
from hrm.ensemble.ensemble import Ensemble, load_members
from hrm.ensemble.report import EnsembleEvaluation
from hrm.ensemble.stacking import read_stacking
from hrm.evaluation.precision import dtypes_on
from hrm.inference.config import Inference
from schemas import HaltedBy
from worker.cli.files import (
    check_outputs,
    check_rereadable,
    print_refused_line,
    read_with_progress,
    write_text,
)
from worker.cli.options import (
    FILE,
    ListCommand,
    batch_size_on,
    data_path_option,
    ensemble_options,
    file_inference_options,
    json_option,
    report_option,
    use_device,
)
from worker.cli.tables.ensemble import print_ensemble
from worker.settings import Settings


@click.command("ensemble", cls=ListCommand)
@ensemble_options(
    required=True,
    combiner_help="File of the stacking combiner: written with --calibration, read without.",
)
@data_path_option()
@click.option(
    "--calibration",
    type=FILE,
    help="JSONL file to fit stacking on. Pairs that --data-path contains too are left out.",
)
@file_inference_options
@report_option
@json_option
def command(
    checkpoints: tuple[str, ...],
    weights: tuple[float, ...],
    strategy: str,
    combiner: Path | None,
    data_path: Path,
    calibration: Path | None,
    device: str | None,
    batch_size: int | None,
    halting: str,
    max_steps: int | None,
    dtype: str,
    output: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes flags by name
) -> None:
    """Evaluate several checkpoints as one, and each of them alone, on the same file.

    Every member runs and halts as it does alone; then their logits are combined. The checkpoints
    must agree in vocabulary, sequence length, word hash and puzzle policy.

    `sqe-hrm worker --checkpoints A B` serves the same ensemble. With stacking, it reads the saved
    --combiner.
    """
    _check_stacking(strategy, calibration, combiner)
    written = combiner if calibration is not None else None
    check_rereadable((data_path, calibration))
    check_outputs((data_path, calibration), (output, written))
    settings = Settings.from_env(device=device)
    pinned = use_device(settings)
    members = load_members(checkpoints, settings.checkpoint_dir)
    inference = Inference(
        slots=batch_size_on(pinned, batch_size),
        halting=HaltedBy(halting),
        max_steps=max_steps,
        dtype=dtypes_on(pinned.torch_name, dtype).of(members, max_steps),
    )
    evaluation = EnsembleEvaluation(
        data_path,
        inference,
        pinned.torch_name,
        LineReader(settings.max_message_bytes),
        open_file=read_with_progress,
        on_refused=print_refused_line,
    )
    stacking, left_out = None, None
    if calibration is not None:
        stacking, left_out = evaluation.fit(members, weights, calibration)
    elif combiner is not None:
        stacking = read_stacking(combiner)
    ensemble = Ensemble(members, Strategy(strategy), weights, stacking)
    if written is not None and stacking is not None:
        write_text(written, stacking.model_dump_json(indent=1))
    report = evaluation.report(ensemble, left_out)
    text = report.model_dump_json(indent=2)
    if output is not None:
        write_text(output, text)
    if as_json:
        click.echo(text)
    else:
        print_ensemble(report)


def _check_stacking(strategy: str, calibration: Path | None, combiner: Path | None) -> None:
    given = calibration is not None or combiner is not None
    if given and strategy != Strategy.STACKING:
        raise click.UsageError("--calibration and --combiner are for --strategy stacking")
    if not given and strategy == Strategy.STACKING:
        raise click.UsageError(
            "--strategy stacking: name pairs to fit it on with --calibration, or a saved --combiner"
        )
