"""A training run, and what it writes to its folder.

The best weights so far are the folder's own checkpoint; its `step_N` folders are saved steps to
resume from (`hrm.training.state`); `curve.jsonl` has every step, and `training.png` shows them.
When to measure and when to stop is decided by `hrm.training.fit`. Knows nothing of terminals.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from hrm.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hrm.checkpoint.figures import MEASURED, write_figures
from hrm.checkpoint.names import WEIGHTS
from hrm.checkpoint.precision import PRECISION, RecordedPrecision, write_precision
from hrm.checkpoint.solved import ACCEPTED_PAIRS
from hrm.data.files import replaced_file
from hrm.evaluation.measurement import BothRules
from hrm.evaluation.precision import measure_precision
from hrm.evaluation.recorded import recorded_figures
from hrm.evaluation.statistics import Share, ShareOf
from hrm.kernels.training import TrainedLevels
from hrm.model.batch import Messages
from hrm.training.fit import Measurement, Progress, fit
from hrm.training.folder import CURVE, PLOT, writing
from hrm.training.meter import Complete, Meter
from hrm.training.options import RunPolicy, TrainingOptions
from hrm.training.plot import plot_training
from hrm.training.replay import Parent, solved_apart
from hrm.training.state import (
    Provenance,
    prune_steps,
    save_step,
)
from hrm.training.stop import InterruptedRunError, StopAskedError, StopRequest
from hrm.training.trainer import DivergedError, StepReport, Trainer
from schemas import HaltedBy, SQEHRMError

logger = logging.getLogger(__name__)

SECONDS_PER_MINUTE = 60

_REPORT = TypeAdapter(StepReport)


def _ignore(_: object) -> None:
    """For callers who need no progress."""


class TrainingRun:
    """A run that is ready to train, and the writer of its folder.

    Args:
        folder: Where everything is written; `claim_folder` made sure that it can be.
        trainer: The network, the parts of the training messages and the steps done so far.
        training: The training messages.
        provenance: What is saved beside the weights, with what the run has measured so far.
        policy: When to give up, and which steps to keep.
        held_out: Messages to measure on and never train on.
        notes: What the run will not do, in lines for whoever starts it.
    """

    def __init__(
        self,
        folder: Path,
        trainer: Trainer,
        training: Messages,
        provenance: Provenance,
        policy: RunPolicy,
        held_out: Messages | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.notes = notes
        self.trainer = trainer
        self.training = training
        self.held_out = held_out
        options = provenance.record.options
        parent = provenance.record.parent
        self._meter = Meter(
            training,
            held_out,
            sample=options.measure_sample,
            seed=options.seed,
            replayed=0 if parent is None else parent.replayed,
        )
        self.progress = Progress(
            steps=trainer.config.steps,
            halt_max_steps=trainer.network.config.halt_max_steps,
            patience=policy.patience,
            sampled=self._meter.sampled,
            measurements=provenance.record.measurements,
        )
        self.solved_apart: Mapping[str, Mapping[HaltedBy, Share]] | None = None
        """At the end: how many of the new and of the replayed messages are solved."""
        self._provenance = provenance
        self._policy = policy
        self._started = self._saved_at = time.monotonic()
        self._saved = trainer.step_count

    def train(
        self,
        *,
        on_step: Callable[[StepReport], None] = _ignore,
        on_measurement: Callable[[Measurement], None] = _ignore,
        stop: StopRequest | None = None,
    ) -> Measurement:
        """Train until `progress` says that the run is over, then measure all with the best weights.

        Returns the best measurement, with the figures of all messages instead of a sample.

        Args:
            on_step: Called after every optimiser step.
            on_measurement: Called after every measurement, once its weights are saved.
            stop: Asks to stop earlier, at the next point from which the run can go on.

        Raises:
            DivergedError: A loss or gradient is not finite. The error says what is kept.
            InterruptedRunError: `stop` was asked; the state of the last step is saved.
            CheckpointError: The folder cannot be written.
        """
        curve_file, stop = self.folder / CURVE, stop or StopRequest()

        def step_done(report: StepReport) -> None:
            curve.write(_REPORT.dump_json(report) + b"\n")
            if time.monotonic() - self._saved_at >= SECONDS_PER_MINUTE * self._policy.save_minutes:
                curve.flush()
                self._save_step()
            on_step(report)

        def measurement_done(measurement: Measurement) -> None:
            curve.flush()
            self._save(measurement)
            on_measurement(measurement)

        with writing(self.folder):
            self._keep_curve(curve_file)
            self._restore_best()
            try:
                with curve_file.open("ab") as curve:
                    fit(
                        self.trainer,
                        self.progress,
                        self._meter,
                        measure_every=self.options.measure_every,
                        on_step=step_done,
                        on_measurement=measurement_done,
                        stop=stop,
                    )
                with stop.at_once():
                    measured = self._measure_all()
            except DivergedError as error:
                best = self.progress.best
                kept = "nothing to keep yet" if best is None else f"step {best.step} is kept"
                raise DivergedError(f"{self.folder}: {error} ({kept})") from None
            except StopAskedError:
                done = f"{self.folder}: {self._interrupted()}"
                raise InterruptedRunError(done, self.trainer.step_count) from None
            finally:
                self._plot(curve_file)
            return self._finish(*measured)

    def _interrupted(self) -> str:
        """Save the state at the current step; returns what became of the run."""
        step = self.trainer.step_count
        if not step:
            return "stopped before the first step: start again"
        if self._saved != step:
            self._save_step()
        return f"stopped at step {step}: resume with --resume"

    def _restore_best(self) -> None:
        """Make the folder's checkpoint that of the best measurement, where the run goes on."""
        step = self.trainer.step_count
        if not (self.folder / WEIGHTS).exists():
            self.progress.lose_best(step)
        if self.progress.measured_step == step and self.progress.improved:
            # The run may have been cut off between a saved step and the checkpoint of it.
            self._write_best()

    def _measure_all(self) -> tuple[Checkpoint, Complete, RecordedPrecision | None]:
        """The folder's checkpoint, which has the best weights, figures of all messages, and which
        verdicts change in coarser dtypes; None if no worker could evaluate it.
        """
        # The weights as they lie there, so that the figures hold for them.
        checkpoint = load_checkpoint(self.folder)
        network = checkpoint.build(device=self.trainer.device)
        levels = TrainedLevels(network).levels
        complete = self._meter.measure_all(network, self._best.step, levels)
        try:
            precision = measure_precision(checkpoint, device=self.trainer.device)
        except SQEHRMError as error:
            logger.warning("no %s is written: %s", PRECISION, error)
            precision = None
        return checkpoint, complete, precision

    def _finish(
        self, checkpoint: Checkpoint, complete: Complete, precision: RecordedPrecision | None
    ) -> Measurement:
        """Write what only the `complete` figures of the best weights can tell."""
        write_figures(
            self.folder, recorded_figures(checkpoint, complete.training, complete.held_out)
        )
        if precision is not None:
            write_precision(self.folder, precision)
        self._record_solved(
            checkpoint.digest,
            {
                HaltedBy.MAX_STEPS: complete.training.max_steps.correctness.solved.cpu(),
                HaltedBy.Q: complete.training.q.correctness.solved.cpu(),
            },
        )
        held_out = None if complete.held_out is None else complete.held_out.totals
        final = replace(self._best, training=complete.training.totals, held_out=held_out)
        self._write_measured(final, complete=True)
        return final

    def _record_solved(self, digest: str, solved: Mapping[HaltedBy, Tensor]) -> None:
        """Write which of the accepted pairs the weights `digest` solve.

        Args:
            digest: The digest of the folder's own checkpoint.
            solved: By halting rule, bool (N,): whether each training message is solved.
        """
        provenance = self._provenance
        distinct = torch.tensor(provenance.distinct, dtype=torch.int64)
        flags = {rule: each[distinct] for rule, each in solved.items()}
        provenance.accepted.measured(flags, digest).write(self.folder / ACCEPTED_PAIRS)
        if (parent := self.parent) and parent.replayed:
            self.solved_apart = solved_apart(solved, parent.replayed)

    def _save(self, measurement: Measurement) -> None:
        """Save what was measured: as a step if that is due, as the checkpoint if it is the best."""
        progress, step, every = self.progress, measurement.step, self._policy.save_every
        due = every is not None and step % every == 0
        if progress.improved or progress.stopped or due:
            self._save_step()
        if progress.improved:
            self._write_best()

    def _save_step(self) -> None:
        """Save the current step, whether it was measured or not."""
        step, measurements = self.trainer.step_count, self.progress.measurements
        measured = measurements[-1] if self.progress.measured_step == step else None
        so_far = {"measurements": tuple(measurements), "seconds": self.seconds}
        record = self._provenance.record.model_copy(update=so_far)
        save_step(
            self.folder / f"step_{step}",
            self.trainer,
            replace(self._provenance, record=record),
            self._measured_json(measured),
        )
        prune_steps(self.folder, self._policy.keep)
        self._saved, self._saved_at = step, time.monotonic()

    def _write_best(self) -> None:
        """Make the weights that were just measured the folder's own checkpoint."""
        # Figures of other weights must not lie beside these, whenever a crash comes.
        (self.folder / MEASURED).unlink(missing_ok=True)
        network, provenance = self.trainer.averaged_network, self._provenance
        save_checkpoint(
            self.folder,
            network.state_dict(),
            network.config,
            provenance.conversion,
            provenance.pairs,
            provenance.accepted,
        )
        self._write_measured(self._best)

    def _write_measured(self, measurement: Measurement, *, complete: bool = False) -> None:
        with replaced_file(self.folder / MEASURED) as file:
            file.write(self._measured_json(measurement, complete=complete).encode())

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken so far, with those before it was resumed."""
        return self._provenance.record.seconds + time.monotonic() - self._started

    @property
    def options(self) -> TrainingOptions:
        """The options of the run, settled."""
        return self._provenance.record.options

    @property
    def about(self) -> Mapping[str, Any]:
        """Facts about the run that `measured.json` holds beside the figures."""
        return self._provenance.about

    @property
    def parent(self) -> Parent | None:
        """The checkpoint that the run started from."""
        return self._provenance.record.parent

    @property
    def _best(self) -> Measurement:
        assert self.progress.best is not None  # noqa: S101 - a run measures its last step
        return self.progress.best

    def _measured_json(self, measurement: Measurement | None, *, complete: bool = False) -> str:
        content = {
            **self.about,
            "training_seconds": round(self.seconds, 1),
            "steps_run": self.trainer.step_count,
            "stopped": self.progress.stopped,
            "step": self.trainer.step_count if measurement is None else measurement.step,
            "measured_in": "float32",
            "complete": complete,
            "training_examples": None,
            "solved_apart": _apart(self.solved_apart),
            "held_out_examples": None,
        }
        if measurement is not None:
            training, held_out = measurement.training, measurement.held_out
            counted = training.q.examples == len(self.training)
            share = Share.counted if counted else Share.measured
            content["training_examples"] = _figures(training, share)
            if held_out is not None:
                content["held_out_examples"] = _figures(held_out, Share.measured)
        return json.dumps(content, indent=2) + "\n"

    def _keep_curve(self, file: Path) -> None:
        """Drop the steps after the saved one from the curve: they will be done again."""
        done: list[bytes] = []
        if self.trainer.step_count and file.exists():
            with file.open("rb") as lines:
                done = list(islice(lines, self.trainer.step_count))
        with replaced_file(file) as kept:
            kept.writelines(line for line in done if line.endswith(b"\n"))

    def _plot(self, curve: Path) -> None:
        reports, progress = _read_curve(curve), self.progress
        if reports:
            title = f"{self.folder.name}: {len(self.training)} messages, {reports[-1].step} steps"
            if progress.best is not None:
                title += f", best at step {progress.best.step} (dotted)"
            with replaced_file(self.folder / PLOT) as file:
                plot_training(file, reports, progress, title)


def _apart(solved: Mapping[str, Mapping[HaltedBy, Share]] | None) -> dict[str, Any] | None:
    if solved is None:
        return None
    return {
        name: {rule: share.model_dump() for rule, share in rules.items()}
        for name, rules in solved.items()
    }


def _figures(rules: BothRules, share: ShareOf) -> dict[str, Any]:
    return {
        name: {
            **asdict(figures),
            "solve_rate": share(figures.solved, figures.examples).model_dump(),
        }
        for name, figures in (("max_steps", rules.max_steps), ("q", rules.q))
    }


def _read_curve(file: Path) -> list[StepReport]:
    with file.open("rb") as lines:
        return [_REPORT.validate_json(line) for line in lines]
