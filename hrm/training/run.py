"""A training run and its folder: what is written there, and when.

The best weights so far are the folder's own checkpoint; `step_N` in it are saved steps to resume
from (`hrm.training.state`); `curve.jsonl` has every step, and `training.png` shows them. When to
measure and when to stop is `hrm.training.fit`'s; nothing is known here of terminals.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor

from hrm.checkpoint import Checkpoint, CheckpointError, TrainingRecord, save_checkpoint
from hrm.checkpoint.names import other_weights
from hrm.data.config import ConversionConfig
from hrm.data.files import replaced_file
from hrm.evaluation.measurement import BothRules
from hrm.model.batch import Batch
from hrm.model.config import HRMConfig
from hrm.training.fit import Measurement, Progress, fit
from hrm.training.plot import plot_training
from hrm.training.state import (
    MEASURED,
    RunRecord,
    SavedStep,
    prune_steps,
    read_step,
    save_step,
    step_folders,
)
from hrm.training.trainer import DivergedError, StepReport, Trainer

CURVE = "curve.jsonl"
"""One `StepReport` a line."""

PLOT = "training.png"

_REPORT = TypeAdapter(StepReport)


def latest_step(folder: Path) -> SavedStep:
    """The saved step from which the run in `folder` goes on. Raises `CheckpointError`."""
    found = step_folders(folder)
    if not found:
        raise CheckpointError(f"{folder}: holds no step_N of a training: start without --resume")
    return read_step(found[-1])


def claim_folder(folder: Path, *, resume: bool) -> None:
    """Make sure, before any work, that a run can be written to `folder`, and spoils nothing there.

    A checkpoint that is there alone will be replaced. Raises `CheckpointError`.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        others = other_weights(folder)
        steps = [] if resume else step_folders(folder)
    if others:
        raise CheckpointError(f"{folder}: holds {others[0].name}: choose another folder")
    if steps:
        raise CheckpointError(
            f"{folder}: holds {steps[-1].name} of a training: go on with --resume, or choose "
            "another folder"
        )


def enlarged(checkpoint: Checkpoint, rows: int) -> tuple[HRMConfig, dict[str, Tensor]]:
    """Configuration and weights of `checkpoint` with room for `rows` puzzles; new rows are zero."""
    config, state = checkpoint.config, dict(checkpoint.state)
    missing = rows - config.num_puzzle_identifiers
    if missing <= 0 or not config.puzzle_emb_ndim:
        return config, state
    state["puzzle_emb.weights"] = F.pad(state["puzzle_emb.weights"], (0, 0, 0, missing))
    return config.model_copy(update={"num_puzzle_identifiers": rows}), state


class TrainingRun:
    """Writes what a training comes to.

    record: what the run was given, with what it has measured and spent so far; about: what
    `measured.json` is to say beside the figures; save_every: steps from one saved step to the
    next, beside those that are saved as the best and as the last; keep: saved steps, the latest.
    """

    def __init__(
        self,
        folder: Path,
        trainer: Trainer,
        conversion: ConversionConfig,
        pairs: TrainingRecord,
        record: RunRecord,
        about: Mapping[str, Any],
        *,
        save_every: int | None = None,
        keep: int = 3,
    ) -> None:
        self.folder = folder
        self._trainer = trainer
        self._conversion = conversion
        self._pairs = pairs
        self._record = record
        self._about = about
        self._save_every = save_every
        self._keep = keep
        self._started = time.monotonic()

    def train(
        self,
        progress: Progress,
        *,
        measure_every: int,
        held_out: Batch | None,
        on_step: Callable[[StepReport], None],
        on_measurement: Callable[[Measurement], None],
    ) -> None:
        """Train until `progress` says that it is over; it knows `record`'s measurements already.

        Raises `DivergedError`, which says what is kept, and `CheckpointError` where the folder
        cannot be written.
        """
        curve_file = self.folder / CURVE

        def step_done(report: StepReport) -> None:
            curve.write(_REPORT.dump_json(report) + b"\n")
            on_step(report)

        def measured(measurement: Measurement) -> None:
            curve.flush()
            self._save(progress, measurement)
            on_measurement(measurement)

        with _writing(self.folder):
            self._keep_curve(curve_file)
            if progress.improved:
                # The run may have been cut off between a saved step and the checkpoint of it.
                self._write_best(progress)
            try:
                with curve_file.open("ab") as curve:
                    fit(
                        self._trainer,
                        progress,
                        measure_every=measure_every,
                        held_out=held_out,
                        on_step=step_done,
                        on_measurement=measured,
                    )
            except DivergedError as error:
                best = progress.best
                kept = "nothing to keep yet" if best is None else f"step {best.step} is kept"
                raise DivergedError(f"{self.folder}: {error} ({kept})") from None
            finally:
                self._plot(curve_file, progress)
            self._write_measured(progress)

    def _save(self, progress: Progress, measurement: Measurement) -> None:
        """What a measurement calls for: a saved step, and the checkpoint if it is the best."""
        step = measurement.step
        due = self._save_every is not None and step % self._save_every == 0
        if progress.improved or progress.stopped or due:
            so_far = {"measurements": tuple(progress.measurements), "seconds": self._seconds}
            save_step(
                self.folder / f"step_{step}",
                self._trainer,
                self._conversion,
                self._pairs,
                self._record.model_copy(update=so_far),
                self._measured_json(progress, measurement),
            )
            prune_steps(self.folder, self._keep)
        if progress.improved:
            self._write_best(progress)

    def _write_best(self, progress: Progress) -> None:
        """Make the weights that were just measured the folder's own checkpoint."""
        # Figures of other weights must not lie beside these, whenever a crash comes.
        (self.folder / MEASURED).unlink(missing_ok=True)
        network = self._trainer.averaged_network
        save_checkpoint(
            self.folder, network.state_dict(), network.config, self._conversion, self._pairs
        )
        self._write_measured(progress)

    def _write_measured(self, progress: Progress) -> None:
        assert progress.best is not None  # noqa: S101 - a run measures its last step
        with replaced_file(self.folder / MEASURED) as file:
            file.write(self._measured_json(progress, progress.best).encode())

    def _measured_json(self, progress: Progress, measurement: Measurement) -> str:
        held_out = measurement.held_out
        content = {
            **self._about,
            "training_seconds": round(self._seconds, 1),
            "steps_run": self._trainer.step_count,
            "stopped": progress.stopped,
            "step": measurement.step,
            "measured_in": "float32",
            "training_examples": _figures(measurement.training),
            "held_out_examples": None if held_out is None else _figures(held_out),
        }
        return json.dumps(content, indent=2) + "\n"

    @property
    def _seconds(self) -> float:
        return self._record.seconds + time.monotonic() - self._started

    def _keep_curve(self, file: Path) -> None:
        """Drop the steps that a crash left there and that will be done again."""
        done: list[bytes] = []
        if self._trainer.step_count and file.exists():
            with file.open("rb") as lines:
                done = list(islice(lines, self._trainer.step_count))
        with replaced_file(file) as kept:
            kept.writelines(line for line in done if line.endswith(b"\n"))

    def _plot(self, curve: Path, progress: Progress) -> None:
        reports = _read_curve(curve)
        if reports:
            examples = len(self._trainer.examples)
            title = f"{self.folder.name}: {examples} examples, {reports[-1].step} steps"
            if progress.best is not None:
                title += f", best at step {progress.best.step} (dotted)"
            with replaced_file(self.folder / PLOT) as file:
                plot_training(file, reports, progress, title)


def _figures(rules: BothRules) -> dict[str, Any]:
    return {
        name: {**asdict(figures), "solve_rate": figures.solve_rate.model_dump()}
        for name, figures in (("max_steps", rules.max_steps), ("q", rules.q))
    }


def _read_curve(file: Path) -> list[StepReport]:
    with file.open("rb") as lines:
        return [_REPORT.validate_json(line) for line in lines]


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror}): choose another folder, or make room"
        ) from None
