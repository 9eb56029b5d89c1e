"""`sqe-hrm ensemble`: several checkpoints as one, beside each alone."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import click

from hrm.checkpoint import Checkpoint
from hrm.data.conversion import Converter
from hrm.data.files import LineReader, RefusedLine
from hrm.ensemble.combiners import Strategy
from hrm.ensemble.ensemble import Ensemble, load_members
from hrm.ensemble.report import (
    MAX_CALIBRATION_EXAMPLES,
    build_report,
    exclude_seen,
    fit_stacking_for,
    sound_examples,
)
from hrm.ensemble.stacking import EnsembleError, Stacking, read_stacking
from hrm.evaluation.evaluator import Evaluator, Model
from hrm.evaluation.report import EvaluationReport
from hrm.evaluation.run import evaluate_file
from hrm.inference.config import Inference, dtype_of
from hrm.inference.prediction import Predictor
from schemas import HaltedBy, HRMExample
from worker.cli.files import (
    check_outputs,
    check_rereadable,
    ignore_refused,
    read_with_progress,
    refused_line_printer,
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
    inference = Inference(
        slots=batch_size_on(pinned, batch_size),
        halting=HaltedBy(halting),
        max_steps=max_steps,
        forward_dtype=dtype_of(dtype, pinned.torch_name),
    )
    run = _Run(data_path, settings, pinned.torch_name, inference)
    members = load_members(checkpoints, settings.checkpoint_dir)
    stacking, left_out = None, None
    if calibration is not None:
        stacking, left_out = run.fit(members, weights, calibration)
    elif combiner is not None:
        stacking = read_stacking(combiner)
    ensemble = Ensemble(members, Strategy(strategy), weights, stacking)
    if written is not None and stacking is not None:
        write_text(written, stacking.model_dump_json(indent=1))
    report = build_report(ensemble, *run.evaluate(ensemble), left_out)
    text = report.model_dump_json(indent=2)
    if output is not None:
        write_text(output, text)
    if as_json:
        click.echo(text)
    else:
        print_ensemble(report)


@dataclass(frozen=True)
class _Run:
    """What every part of the work needs."""

    data_path: Path
    settings: Settings
    device: str
    inference: Inference

    def fit(
        self, members: Sequence[Checkpoint], weights: Sequence[float], calibration: Path
    ) -> tuple[Stacking, int]:
        """A combiner, and how many of the calibration's examples the data has too."""
        converter = Converter(members[0].conversion)
        with self._examples(calibration, converter, refused_line_printer(calibration)) as source:
            examples = list(islice(source, MAX_CALIBRATION_EXAMPLES))
        with self._examples(self.data_path, converter, ignore_refused) as data:
            others = exclude_seen(examples, data)
        if not others:
            raise EnsembleError(
                f"{calibration} has no pair that {self.data_path} lacks: a combiner is fitted on "
                "other pairs than it is evaluated on"
            )
        stacking = fit_stacking_for(
            members,
            weights,
            others,
            str(calibration),
            device=self.device,
            inference=self.inference,
        )
        return stacking, len(examples) - len(others)

    def evaluate(self, ensemble: Ensemble) -> tuple[list[EvaluationReport], EvaluationReport]:
        """Each member alone, and the ensemble."""
        together = ensemble.open(self.inference, self.device)
        # What the ensemble takes, every member takes: a refused line is told once.
        report = self._evaluate(ensemble, together, refused_line_printer(self.data_path))
        alone = [
            self._evaluate(member, self.inference.open(member, self.device), ignore_refused)
            for member in ensemble.members
        ]
        return alone, report

    def _evaluate(
        self, model: Model, predictor: Predictor, on_refused: Callable[[RefusedLine], None]
    ) -> EvaluationReport:
        evaluator = Evaluator(
            model,
            predictor,
            device=self.device,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            max_message_bytes=self.settings.max_message_bytes,
        )
        with (
            contextlib.closing(evaluator),
            read_with_progress(self.data_path, "Evaluating") as source,
        ):
            return evaluate_file(
                source,
                str(self.data_path),
                evaluator,
                reader=LineReader(self.settings.max_message_bytes),
                on_refused=on_refused,
                on_verdict=lambda _: None,
            )

    @contextlib.contextmanager
    def _examples(
        self, path: Path, converter: Converter, on_refused: Callable[[RefusedLine], None]
    ) -> Iterator[Iterator[HRMExample]]:
        with read_with_progress(path, "Reading") as source:
            yield sound_examples(
                source,
                converter,
                reader=LineReader(self.settings.max_message_bytes),
                on_refused=on_refused,
            )


def _check_stacking(strategy: str, calibration: Path | None, combiner: Path | None) -> None:
    given = calibration is not None or combiner is not None
    if given and strategy != Strategy.STACKING:
        raise click.UsageError("--calibration and --combiner are for --strategy stacking")
    if not given and strategy == Strategy.STACKING:
        raise click.UsageError(
            "--strategy stacking: name pairs to fit it on with --calibration, or a --combiner that "
            "was saved"
        )
