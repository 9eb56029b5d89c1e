"""`sqe-hrm ensemble`: several checkpoints as one, beside each alone."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import click
import torch

from hrm.checkpoint import Checkpoint
from hrm.data.conversion import Converter
from hrm.data.files import LineReader, RefusedLine, replaced_file
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
from schemas import HaltedBy, HRMExample, SQEHRMError
from worker.cli.commands.convert import open_with_progress, refused_line_printer
from worker.cli.ensemble_options import ListCommand, ensemble_options
from worker.cli.inference_options import (
    batch_size_option,
    device_option,
    dtype_option,
    halting_option,
)
from worker.cli.tables.ensemble import print_ensemble
from worker.process import devices
from worker.settings import Settings

DEFAULT_BATCH_SIZE = {"cpu": 32, "cuda": 512}
"""As of `sqe-hrm evaluate`."""

MAX_STEPS = 1000
"""As of `sqe-hrm evaluate`."""

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_NEW_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("ensemble", cls=ListCommand)
@ensemble_options(
    required=True,
    combiner_help="Of stacking: with --calibration, where to save what was fitted; without, what "
    "to take.",
)
@click.option(
    "--data-path",
    required=True,
    type=_FILE,
    help="JSONL of messages, bare pairs, or converted examples.",
)
@click.option("--calibration", type=_FILE, help="JSONL to fit stacking on: other pairs than those.")
@device_option
@batch_size_option
@halting_option
@click.option(
    "--max-steps",
    type=click.IntRange(1, MAX_STEPS),
    help="ACT steps of every member.  [default: each checkpoint's own]",
)
@dtype_option(default="float32")
@click.option("--output", type=_NEW_FILE, help="The whole report as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
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

    Every member runs and halts as it does alone; the logits it then has are combined. Checkpoints
    have to agree in vocabulary, sequence length, word hash and puzzle policy.

    Stacking is fitted on the pairs of --calibration, of which those that --data-path has too are
    left out. `sqe-hrm worker --checkpoints A B` serves the same ensemble; one that is stacked
    takes the saved --combiner.
    """
    _check_stacking(strategy, calibration, combiner)
    written = combiner if calibration is not None else None
    _check_files((data_path, calibration), (output, written))
    settings = Settings.from_env(device=device)
    pinned = _pin(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    inference = Inference(
        slots=batch_size or DEFAULT_BATCH_SIZE["cuda" if pinned.is_cuda else "cpu"],
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
        _write(written, stacking.model_dump_json(indent=1))
    report = build_report(ensemble, *run.evaluate(ensemble), left_out)
    text = report.model_dump_json(indent=2)
    if output is not None:
        _write(output, text)
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
        with self._examples(self.data_path, converter, _tell_nobody) as data:
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
            self._evaluate(member, self.inference.open(member, self.device), _tell_nobody)
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
        with contextlib.closing(evaluator), self._reading(self.data_path, "Evaluating") as source:
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
        with self._reading(path, "Reading") as source:
            yield sound_examples(
                source,
                converter,
                reader=LineReader(self.settings.max_message_bytes),
                on_refused=on_refused,
            )

    @staticmethod
    @contextlib.contextmanager
    def _reading(path: Path, description: str) -> Iterator[BinaryIO]:
        try:
            with open_with_progress(path, description) as source:
                yield source
        except OSError as error:
            raise SQEHRMError(f"cannot read {path}: {error.strerror}") from None


def _tell_nobody(_: RefusedLine) -> None:
    """For lines that were told before."""


def _check_stacking(strategy: str, calibration: Path | None, combiner: Path | None) -> None:
    given = calibration is not None or combiner is not None
    if given and strategy != Strategy.STACKING:
        raise click.UsageError("--calibration and --combiner are for --strategy stacking")
    if not given and strategy == Strategy.STACKING:
        raise click.UsageError(
            "--strategy stacking: name pairs to fit it on with --calibration, or a --combiner that "
            "was saved"
        )


def _check_files(inputs: Sequence[Path | None], outputs: Sequence[Path | None]) -> None:
    """Inputs can be read again, and nothing that is read or written is overwritten."""
    taken = []
    for path in filter(None, inputs):
        if not path.is_file():
            raise click.UsageError(f"{path} is read several times: give a regular file")
        taken.append(path.resolve())
    for path in filter(None, outputs):
        if path.resolve() in taken:
            raise click.UsageError(f"{path} is named twice: name another file to write")
        taken.append(path.resolve())


def _pin(name: str) -> devices.Device:
    try:
        device = devices.pin(name)
        devices.check(device)
    except devices.DeviceError as error:
        raise click.UsageError(str(error)) from None
    return device


def _write(path: Path, text: str) -> None:
    try:
        with replaced_file(path) as sink:
            sink.write(text.encode() + b"\n")
    except OSError as error:
        raise SQEHRMError(f"cannot write {path}: {error.strerror}") from None
