"""Reports of an ensemble beside each of its members, and the calibration of stacking.

Joins evaluation, members and ensembles; knows no terminal.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from hrm.checkpoint import Checkpoint, pair_hash
from hrm.data.conversion import Converter
from hrm.data.files import DEFAULT_READER, LineReader, RefusedLine
from hrm.ensemble.combiners import Strategy
from hrm.ensemble.ensemble import Ensemble, check_members, common_training, normalised
from hrm.ensemble.stacking import EnsembleError, Stacking, fit_stacking
from hrm.evaluation.answers import with_row_of_target
from hrm.evaluation.evaluator import Evaluator, Model
from hrm.evaluation.outcomes import (
    DistinctExamples,
    Outcomes,
    PairedFigures,
    compare_outcomes,
)
from hrm.evaluation.recommendation import Recommendation, labels_of, recommend
from hrm.evaluation.report import EvaluationReport
from hrm.evaluation.run import evaluate_file
from hrm.inference.config import Inference
from hrm.inference.prediction import Predictor
from schemas import HRMExample, MessageRejected, Verdict

MAX_CALIBRATION_EXAMPLES = 10_000
"""Most examples to fit on, from the start of the file: half a million tokens are plenty for a few
hundred coefficients."""


MAX_STACKED_TOKENS = 64
"""Most tokens for stacking: a combiner of two members learns two numbers for each two tokens."""


class Calibration(BaseModel):
    """The data that a stacking combiner was fitted on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    examples: int
    tokens: int
    left_out: int | None = Field(
        description="Examples not fitted on, because the evaluated data has them too. Null if the "
        "combiner was fitted earlier: then nobody compared."
    )


class EnsembleReport(BaseModel):
    """The members and the ensemble, evaluated on the same data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = 1
    strategy: Strategy
    weights: tuple[float, ...] = Field(description="One per member, in order, with sum 1.")
    calibration: Calibration | None
    members: tuple[EvaluationReport, ...] = Field(description="Each member alone.")
    ensemble: EvaluationReport
    repeated_lines: int = Field(
        description="Lines whose example equals that of an earlier line. Each report counts every "
        "line; the pairs count equal examples once."
    )
    pairs: tuple[PairedFigures, ...] = Field(
        description="Each two of the members and the ensemble, on the same distinct examples."
    )
    recommendation: Recommendation | None = Field(
        description="What to take, as far as this data says; null if it has no example."
    )


def _open(path: Path, _: str) -> BinaryIO:
    return path.open("rb")


def _ignore(*_: object) -> None:
    """For callers who need no reports, and for lines that were reported before."""


@dataclass(frozen=True)
class EnsembleEvaluation:
    """Evaluates an ensemble, and each of its members alone, on the same file.

    Args:
        data_path: JSONL file of messages, bare pairs or converted examples. It is read several
            times.
        inference: How every network is run.
        device: Where, as torch calls it.
        reader: Reads and judges the lines.
        open_file: Opens a file for reading; the second argument says what for. This is where a
            caller shows progress and words its errors.
        on_refused: Called once with the file and each line of it that cannot be evaluated.
    """

    data_path: Path
    inference: Inference
    device: str = "cpu"
    reader: LineReader = DEFAULT_READER
    open_file: Callable[[Path, str], AbstractContextManager[BinaryIO]] = _open
    on_refused: Callable[[Path, RefusedLine], None] = _ignore

    def fit(
        self, members: Sequence[Checkpoint], weights: Sequence[float] | None, calibration: Path
    ) -> tuple[Stacking, int]:
        """Fit a stacking combiner on the pairs of `calibration` that the data does not contain.

        Returns the combiner, and how many examples were left out. Raises `EnsembleError` if none
        are left to fit on, or if the members have too many tokens.
        """
        if (tokens := members[0].config.vocab_size) > MAX_STACKED_TOKENS:
            raise EnsembleError(
                f"stacking learns a number for each two tokens, too many for {tokens} of them: "
                "choose weighted_average or voting"
            )
        converter = Converter(members[0].conversion)

        def examples_of(
            path: Path, source: BinaryIO, on_refused: Callable[[Path, RefusedLine], None]
        ) -> Iterator[HRMExample]:
            return sound_examples(
                source,
                converter,
                reader=self.reader,
                on_refused=lambda line: on_refused(path, line),
            )

        with self.open_file(calibration, "Reading") as source:
            found = examples_of(calibration, source, self.on_refused)
            examples = list(islice(found, MAX_CALIBRATION_EXAMPLES))
        with self.open_file(self.data_path, "Reading") as source:
            others = exclude_seen(examples, examples_of(self.data_path, source, _ignore))
        if not others:
            raise EnsembleError(
                f"{calibration} has no pair that {self.data_path} lacks: a combiner is fitted on "
                "other pairs than it is evaluated on"
            )
        record = common_training(members)
        if record is not None:
            others = [with_row_of_target(each, record) for each in others]
        stacking = fit_stacking_for(
            members,
            weights,
            [part for example in others for part in converter.parts(example)],
            str(calibration),
            device=self.device,
            inference=self.inference,
        )
        return stacking, len(examples) - len(others)

    def report(self, ensemble: Ensemble, left_out: int | None = None) -> EnsembleReport:
        """Evaluate everything and put it side by side.

        Args:
            ensemble: The ensemble, whose members are evaluated too.
            left_out: Examples that `fit` left out, if the ensemble's combiner was fitted just now.
        """
        examples = DistinctExamples()
        outcomes = [Outcomes(name) for name in (*labels_of(ensemble.members), ensemble.name)]
        # What the ensemble takes, every member takes: a refused line is reported once.
        together = self._evaluate(
            ensemble,
            ensemble.open(self.inference, self.device),
            self.on_refused,
            _note(examples, outcomes[-1]),
        )
        alone = [
            self._evaluate(
                member, self.inference.open(member, self.device), _ignore, _note(examples, own)
            )
            for member, own in zip(ensemble.members, outcomes[:-1], strict=True)
        ]
        # A share without an interval is one of all training pairs, and of nothing else.
        counted = [report.overall.solved.low is None for report in (*alone, together)]
        pairs = compare_outcomes(outcomes, examples, together.setting.halting, counted)
        return build_report(
            ensemble, alone, together, pairs, repeats=outcomes[-1].repeats, left_out=left_out
        )

    def _evaluate(
        self,
        model: Model,
        predictor: Predictor,
        on_refused: Callable[[Path, RefusedLine], None],
        on_example: Callable[[HRMExample, Verdict], None],
    ) -> EvaluationReport:
        evaluator = Evaluator(model, predictor, device=self.device, worker="local")
        with (
            contextlib.closing(evaluator),
            self.open_file(self.data_path, "Evaluating") as source,
        ):
            return evaluate_file(
                source,
                str(self.data_path),
                evaluator,
                reader=self.reader,
                on_refused=lambda line: on_refused(self.data_path, line),
                on_verdict=_ignore,
                on_example=on_example,
            )


def _note(examples: DistinctExamples, outcomes: Outcomes) -> Callable[[HRMExample, Verdict], None]:
    """A callback that adds each verdict to `outcomes`."""

    def note(example: HRMExample, verdict: Verdict) -> None:
        outcomes.add(
            examples.position([example], verdict.message_id),
            solved=verdict.solved,
            correct=verdict.correct_tokens,
            targets=verdict.target_tokens,
        )

    return note


def build_report(
    ensemble: Ensemble,
    members: Sequence[EvaluationReport],
    together: EvaluationReport,
    pairs: Sequence[PairedFigures],
    *,
    repeats: int,
    left_out: int | None,
) -> EnsembleReport:
    """Put the evaluations of the members and of the ensemble beside each other.

    Args:
        ensemble: The evaluated ensemble.
        members: The evaluation of each member alone.
        together: The evaluation of the ensemble.
        pairs: Comparisons of each two of them.
        repeats: Lines whose example equals that of an earlier line.
        left_out: Examples not fitted on, because the evaluated data has them too.
    """
    stacking = ensemble.stacking
    return EnsembleReport(
        strategy=ensemble.strategy,
        weights=ensemble.weights,
        calibration=None
        if stacking is None
        else Calibration(
            data=stacking.calibration,
            examples=stacking.examples,
            tokens=stacking.tokens,
            left_out=left_out,
        ),
        members=tuple(members),
        ensemble=together,
        repeated_lines=repeats,
        pairs=tuple(pairs),
        recommendation=recommend(pairs)[0] if pairs else None,
    )


def sound_examples(
    source: BinaryIO,
    converter: Converter,
    *,
    reader: LineReader = DEFAULT_READER,
    on_refused: Callable[[RefusedLine], None],
) -> Iterator[HRMExample]:
    """The examples of all lines of `source`, converted where needed; refused lines are left out.

    Each refused line goes to `on_refused` when it is met.
    """
    for index, content in reader.contents(source):
        if isinstance(content, RefusedLine):
            on_refused(content)
            continue
        try:
            yield converter.example_of(content, index)
        except MessageRejected as rejected:
            on_refused(RefusedLine.of(index, rejected))


def exclude_seen(calibration: Sequence[HRMExample], data: Iterator[HRMExample]) -> list[HRMExample]:
    """Return the examples of `calibration` whose puzzle and input do not occur in `data`.

    A combiner has to be fitted on other examples than it is evaluated on, or its figures say
    nothing. `data` may have any length and is read once.
    """
    hashes = [pair_hash(each.puzzle_id, each.input_sequence) for each in calibration]
    left = set(hashes)
    for example in data:
        left.discard(pair_hash(example.puzzle_id, example.input_sequence))
    return [each for each, own in zip(calibration, hashes, strict=True) if own in left]


def fit_stacking_for(
    members: Sequence[Checkpoint],
    weights: Sequence[float] | None,
    examples: Sequence[HRMExample],
    calibration: str,
    *,
    device: str,
    inference: Inference,
) -> Stacking:
    """Fit a stacking combiner for `members`.

    Args:
        members: The checkpoints.
        weights: Weights of the average that the combiner starts from (default: all equal).
        examples: The calibration examples.
        calibration: What the combiner calls them.
        device: Device of the members.
        inference: How they run; with the halting rule that the combiner will be used under.

    Raises:
        EnsembleError: The members do not go together, or no example is left.
    """
    check_members(members)
    shares = normalised(weights, len(members))
    with contextlib.ExitStack() as stack:
        engines = []
        for member in members:
            engine = inference.engine([member], device, keep_logits=True)
            stack.callback(engine.close)
            engines.append((member.digest, engine))
        return fit_stacking(engines, shares, examples, calibration)
