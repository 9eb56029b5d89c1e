"""Several runs that differ in their seed alone: the best becomes the checkpoint of their folder.

Knows runs by their folders; nothing of how one is set up or shown.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hrm.checkpoint import CheckpointError
from hrm.checkpoint.figures import MEASURED
from hrm.checkpoint.names import WEIGHTS
from hrm.data.files import replaced_file
from hrm.evaluation.measurement import BothRules, RuleFigures
from hrm.training.fit import Measurement
from hrm.training.folder import CURVE, PLOT, SEEDS, claim_folder, writing
from hrm.training.options import OptionsError, TrainingOptions, check_given
from hrm.training.run import TrainingRun
from hrm.training.state import step_folders
from hrm.training.stop import InterruptedRunError
from hrm.training.trainer import MAX_SEED, DivergedError
from schemas import SQEHRMError

_DATA = ("data_sha256", "held_out_sha256")
"""Facts about a run that are the same for all seeds."""

Prepare = Callable[[Path, TrainingOptions, bool], TrainingRun]
"""Sets up the run of a folder with options, resumed or not."""


class SeedsRecord(BaseModel):
    """The content of `seeds.json`: what all runs of the folder are started with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    seeds: int = Field(ge=2)
    options: TrainingOptions
    """As they were given; `seed` is the first one."""
    data: Mapping[str, str | None]

    @property
    def numbers(self) -> range:
        """All seeds."""
        return range(self.options.seed, self.options.seed + self.seeds)


@dataclass(frozen=True)
class SeedResult:
    """A finished run: its best weights, measured on all messages."""

    seed: int
    step: int
    training: BothRules
    seconds: float

    @property
    def rank(self) -> tuple[float, ...]:
        """Sort key; larger is better."""
        return Measurement(self.step, self.training).rank


class SeedRuns:
    """The runs of a folder, one after the other.

    Args:
        folder: Holds a folder `seed-N` for each run, and becomes the checkpoint of the best.
        prepare: Sets up one run.
    """

    def __init__(self, folder: Path, prepare: Prepare) -> None:
        self.folder = folder
        self._prepare = prepare

    def train(
        self,
        record: SeedsRecord | None,
        options: TrainingOptions,
        seeds: int,
        train: Callable[[TrainingRun], object],
        on_diverged: Callable[[DivergedError], object],
    ) -> list[SeedResult]:
        """Train what is not finished, and return the results of all runs that did not diverge.

        Args:
            record: That of the folder, if its runs are resumed.
            options: What the runs are started with, from the seed in it on.
            seeds: Number of runs.
            train: Trains one run.
            on_diverged: Called after a run that diverged; the others go on.

        Raises:
            OptionsError: There are no such seeds.
            InterruptedRunError: A run was asked to stop.
            DivergedError: All runs diverged.
            CheckpointError: The folder cannot be written, or holds another run.
        """
        if record is None:
            if options.seed + seeds > MAX_SEED:
                raise OptionsError(["seed", "seeds"], ": together beyond the largest seed")
            if self.folder.exists():
                claim_folder(self.folder, resume=False)
            record = SeedsRecord(seeds=seeds, options=options, data={})
        results: list[SeedResult] = []
        diverged: dict[int, DivergedError] = {}
        for seed in record.numbers:
            try:
                record = self._run(seed, record, train)
            except DivergedError as error:
                diverged[seed] = error
                on_diverged(error)
            if (result := read_result(self.folder / f"seed-{seed}", seed)) is not None:
                results.append(result)
            if results:
                self._keep_best(results, list(diverged))
        if not results:
            raise diverged[record.options.seed]
        return results

    def _run(
        self, seed: int, record: SeedsRecord, train: Callable[[TrainingRun], object]
    ) -> SeedsRecord:
        """Train the run of `seed` unless it is finished; returns the record with its data."""
        folder = self.folder / f"seed-{seed}"
        if read_result(folder, seed) is not None:
            return record
        options = record.options.model_copy(update={"seed": seed})
        run = self._prepare(folder, options, bool(step_folders(folder)))
        data = {name: run.about[name] for name in _DATA}
        if not record.data:
            record = record.model_copy(update={"data": data})
            with writing(self.folder), replaced_file(self.folder / SEEDS) as file:
                file.write(record.model_dump_json(exclude_unset=True, indent=2).encode())
        elif data != record.data:
            raise SQEHRMError(
                f"{self.folder}: its other seeds were trained on other data: give the same files, "
                "or start anew in another folder"
            )
        try:
            train(run)
        except InterruptedRunError as error:
            raise InterruptedRunError(
                f"{self.folder}: stopped at step {error.step} of seed {seed}: resume with --resume",
                error.step,
            ) from None
        return record

    def _keep_best(self, results: Sequence[SeedResult], diverged: Sequence[int]) -> None:
        """Make the folder the checkpoint of the best of `results`."""
        best = max(results, key=lambda each: each.rank)
        source, target = self.folder / f"seed-{best.seed}", self.folder
        content = json.loads((source / MEASURED).read_text(encoding="utf-8"))
        content["seeds"] = [asdict(each) for each in results]
        content["diverged_seeds"] = diverged
        with writing(target):
            # As in `save_checkpoint`: without its weights, which come last, the folder does not
            # load.
            (target / MEASURED).unlink(missing_ok=True)
            (target / WEIGHTS).unlink(missing_ok=True)
            for file in sorted(source.iterdir(), key=lambda file: file.name == WEIGHTS):
                if file.is_file() and file.name not in {CURVE, PLOT, MEASURED}:
                    with replaced_file(target / file.name) as copy:
                        copy.write(file.read_bytes())
            with replaced_file(target / MEASURED) as copy:
                copy.write((json.dumps(content, indent=2) + "\n").encode())


def seeds_record(
    folder: Path, options: TrainingOptions, seeds: int | None, *, resume: bool
) -> SeedsRecord | None:
    """The record of the runs in `folder` if they are resumed, or None.

    Raises:
        OptionsError: Other options or another number of seeds are given than the record has.
        CheckpointError: The record cannot be read.
    """
    file = folder / SEEDS
    if not resume:
        return None
    if not file.exists():
        if seeds is not None and seeds > 1:
            check_given({"seeds": seeds}, {"seeds": 1}, f"the run in {folder}")
        return None
    try:
        record = SeedsRecord.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        raise CheckpointError(f"{file}: damaged: start anew in another folder") from None
    given = {name: getattr(options, name) for name in options.model_fields_set}
    if seeds is not None:
        given["seeds"] = seeds
    has = {**dict(record.options), "seeds": record.seeds}
    check_given(given, has, f"the run in {folder}")
    return record


def read_result(folder: Path, seed: int) -> SeedResult | None:
    """The result of the run in `folder`, or None if it is not finished."""
    try:
        measured: dict[str, Any] = json.loads((folder / MEASURED).read_bytes())
    except (OSError, ValueError):
        return None
    if not measured.get("complete"):
        return None
    rules = measured["training_examples"]
    return SeedResult(
        seed,
        measured["step"],
        BothRules(max_steps=_figures(rules["max_steps"]), q=_figures(rules["q"])),
        measured["training_seconds"],
    )


def _figures(stored: Mapping[str, Any]) -> RuleFigures:
    names = {field.name for field in fields(RuleFigures)}
    return RuleFigures(**{name: value for name, value in stored.items() if name in names})
