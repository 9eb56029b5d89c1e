"""A choice among several checkpoints, by which of the same messages each solves.

Knows inference, outcomes and their paired tests; nothing of weights, files, terminals or tables.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, starmap
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field

from hrm.checkpoint import Checkpoint
from hrm.data.config import ConversionConfig
from hrm.data.conversion import Content, Converter, name_of
from hrm.evaluation.answers import with_rows
from hrm.evaluation.check import check_message
from hrm.evaluation.coverage import PairCoverage
from hrm.evaluation.measurement import MEASURE_BATCH, measure_each
from hrm.evaluation.outcomes import (
    DistinctExamples,
    Outcomes,
    PairedFigures,
    compare_outcomes,
)
from hrm.evaluation.statistics import Share
from hrm.model.batch import ExampleError, check_fits, encode_messages
from schemas import HaltedBy, HRMExample, MessageRejected, PromptMatch, SQEHRMError

SIGNIFICANT_BELOW = 0.05
"""Adjusted p-value below which one checkpoint counts as better than another. If all were equally
good, at most one recommendation in twenty would be made."""

WEIGHTS_ALONE = (
    "no recommendation: weights alone do not tell which checkpoint is better; "
    "measure them on messages"
)


class ComparisonError(SQEHRMError):
    """Checkpoints that cannot be measured on the same messages."""


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CheckpointFigures(_Report):
    """Figures of one checkpoint's inference over distinct examples, under one halting rule."""

    checkpoint: str
    halting: HaltedBy
    solved: Share
    known: int = Field(description="Examples that this checkpoint was trained on.")
    solved_by_match: dict[str, Share] = Field(
        description="By how this checkpoint's training set knows the prompt, if any is so known."
    )
    token_accuracy: float = Field(description="Correct tokens / target tokens.")
    q_accuracy: float = Field(description="Share of examples whose q_halt is right.")
    mean_act_steps: float


class Measurements(_Report):
    """Figures of several checkpoints on the same messages; empty if there was no message."""

    figures: tuple[CheckpointFigures, ...] = ()
    pairs: tuple[PairedFigures, ...] = Field(
        default=(), description="Each two checkpoints, under each halting rule."
    )
    repeats: int = Field(
        default=0, description="Messages equal to an earlier one (puzzle, input, target): left out."
    )


class Recommendation(_Report):
    """Which checkpoint to take under a halting rule, as far as the measurements say."""

    halting: HaltedBy | None = Field(description="Null if nothing was measured.")
    recommended: str | None
    candidates: tuple[str, ...] = Field(
        description="The best, and all that the data cannot tell from it."
    )
    reason: str


def labels_of(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return a label for each: its name, or the path of its weights if names repeat.

    Raises `ComparisonError` if a file is given twice.
    """
    for labels in (
        [checkpoint.name for checkpoint in checkpoints],
        [str(checkpoint.path) for checkpoint in checkpoints],
    ):
        if len(set(labels)) == len(labels):
            return labels
    repeated = next(label for label in labels if labels.count(label) > 1)
    raise ComparisonError(f"{repeated} is named twice: name each checkpoint once")


def measure_messages(
    checkpoints: Sequence[Checkpoint],
    lines: Iterable[tuple[int, Content]],
    rules: Sequence[HaltedBy],
    device: torch.device | str = "cpu",
) -> Measurements:
    """Run every checkpoint over the same messages, under each of `rules`, and compare each two.

    Each checkpoint converts messages as it was trained to. Messages that are equal for all of them
    (puzzle, input and target) are measured once.

    Args:
        checkpoints: The checkpoints.
        lines: Messages, each with its index from 0. They are read once and never held all at once;
            what is kept of each is in `hrm.evaluation.outcomes`.
        rules: The halting rules.
        device: Device of the checkpoints.

    Raises:
        ComparisonError: One of the checkpoints cannot take a message.
    """
    candidates = [
        _Candidate(label, checkpoint, rules, device)
        for label, checkpoint in zip(labels_of(checkpoints), checkpoints, strict=True)
    ]
    messages = _Messages({checkpoint.conversion for checkpoint in checkpoints})
    remaining = messages.distinct(lines)
    while batch := list(islice(remaining, MEASURE_BATCH)):
        for candidate in candidates:
            candidate.add(batch)
    if not messages.examples:
        return Measurements()
    counted = [candidate.counted for candidate in candidates]
    return Measurements(
        figures=tuple(candidate.figures(rule) for rule in rules for candidate in candidates),
        pairs=tuple(
            pair
            for rule in rules
            for pair in compare_outcomes(
                [candidate.outcomes[rule] for candidate in candidates],
                messages.examples,
                rule,
                counted,
            )
        ),
        repeats=messages.repeats,
    )


def recommend(pairs: Sequence[PairedFigures]) -> list[Recommendation]:
    """Recommend for each halting rule the checkpoint that solves significantly more than each
    other.

    Significant is an adjusted p-value of McNemar's test below `SIGNIFICANT_BELOW`. If the best
    cannot be told from another, none is recommended, and all of these are named. Without pairs the
    one recommendation says that there can be none.
    """
    if not pairs:
        return [Recommendation(halting=None, recommended=None, candidates=(), reason=WEIGHTS_ALONE)]
    rules = dict.fromkeys(pair.halting for pair in pairs)
    return [_recommend(rule, [pair for pair in pairs if pair.halting is rule]) for rule in rules]


@dataclass(frozen=True)
class _Message:
    """A message that differs from those before it."""

    position: int
    """Its number among the distinct examples."""
    index: int
    """The line's index in its file."""
    content: Content
    forms: Mapping[ConversionConfig, HRMExample]
    """The message as an example, by the ways in which checkpoints convert it."""


class _Messages:
    """Turns lines into distinct examples, and counts the repeats."""

    def __init__(self, conversions: Iterable[ConversionConfig]) -> None:
        self.examples = DistinctExamples()
        self.repeats = 0
        self._converters = [Converter(conversion) for conversion in conversions]

    def distinct(self, lines: Iterable[tuple[int, Content]]) -> Iterator[_Message]:
        """The lines that are no repeats."""
        for index, content in lines:
            try:
                forms = {
                    converter.config: converter.example_of(content, index)
                    for converter in self._converters
                }
            except MessageRejected as rejected:
                raise ComparisonError(f"line {index + 1}: {rejected.detail}") from None
            count = len(self.examples)
            position = self.examples.position(forms.values(), name_of(content, index))
            if position == count:
                yield _Message(position, index, content, forms)
            else:
                self.repeats += 1


class _Answer(NamedTuple):
    """The answer to one example, with one puzzle row."""

    number: int
    """Number of the example in its batch."""
    solved: bool
    correct: int
    targets: int
    q_right: bool
    act_steps: int


def _nearest(answers: Iterable[_Answer]) -> Iterator[_Answer]:
    """For each example the answer with most right tokens; the first wins a tie."""
    for _, own in groupby(answers, key=lambda answer: answer.number):
        yield max(own, key=lambda answer: answer.correct)


class _Candidate:
    """A checkpoint, and its figures so far."""

    def __init__(
        self,
        label: str,
        checkpoint: Checkpoint,
        rules: Sequence[HaltedBy],
        device: torch.device | str,
    ) -> None:
        self.outcomes = {rule: Outcomes(label) for rule in rules}
        self._label = label
        self._checkpoint = checkpoint
        self._device = device
        self._network = checkpoint.build(device=device)
        self._converter = Converter(checkpoint.conversion)
        self._coverage = PairCoverage(checkpoint.training)
        self._examples = self._known = 0
        self._matches: Counter[PromptMatch] = Counter()
        self._solved: dict[HaltedBy, Counter[PromptMatch]] = {rule: Counter() for rule in rules}
        self._q_right = dict.fromkeys(rules, 0)
        self._steps = dict.fromkeys(rules, 0)

    def add(self, batch: Sequence[_Message]) -> None:
        examples = [self._example(message) for message in batch]
        checks = [
            check_message(
                message.content,
                example,
                self._checkpoint.training,
                self._converter.named_puzzle(message.content),
            )
            for message, example in zip(batch, examples, strict=True)
        ]
        self._examples += len(examples)
        self._matches.update(check.match for check in checks)
        self._known += sum(
            self._coverage.add(example, check.text)
            for example, check in zip(examples, checks, strict=True)
        )
        # A prompt with several accepted answers is measured with the row of each; the best counts.
        asked = [
            (number, form, check.target_accepted)
            for number, (example, check) in enumerate(zip(examples, checks, strict=True))
            for form in with_rows(example, check.rows)
        ]
        for rule, outcomes in self.outcomes.items():
            answers = self._answers(asked, rule)
            for message, check, answer in zip(batch, checks, _nearest(answers), strict=True):
                self._solved[rule][check.match] += answer.solved
                self._q_right[rule] += answer.q_right
                self._steps[rule] += answer.act_steps
                outcomes.add(
                    message.position,
                    solved=answer.solved,
                    correct=answer.correct,
                    targets=answer.targets,
                )

    @property
    def counted(self) -> bool:
        """Whether the examples were all training pairs of this checkpoint, and no others."""
        return self._coverage.complete and self._known == self._examples

    def figures(self, rule: HaltedBy) -> CheckpointFigures:
        solved, tokens = self.outcomes[rule].totals()
        share = Share.counted if self.counted else Share.measured
        return CheckpointFigures(
            checkpoint=self._label,
            halting=rule,
            solved=share(solved, self._examples),
            known=self._known,
            solved_by_match={
                match.value: share(self._solved[rule][match], self._matches[match])
                for match in PromptMatch
                if self._matches[match]
            },
            token_accuracy=tokens,
            q_accuracy=self._q_right[rule] / self._examples,
            mean_act_steps=self._steps[rule] / self._examples,
        )

    def _answers(
        self, asked: Sequence[tuple[int, HRMExample, bool]], rule: HaltedBy
    ) -> Iterator[_Answer]:
        for start in range(0, len(asked), MEASURE_BATCH):
            numbers, examples, accepted = zip(*asked[start : start + MEASURE_BATCH], strict=True)
            parts = [self._converter.parts(example) for example in examples]
            figures = measure_each(
                self._network,
                encode_messages(parts, self._checkpoint.config).to(self._device),
                rule,
                torch.tensor(accepted, device=self._device),
            )
            correctness = figures.correctness
            columns = (
                correctness.solved,
                correctness.correct,
                correctness.targets,
                figures.q_right,
                figures.act_steps,
            )
            rows = zip(numbers, *(column.tolist() for column in columns), strict=True)
            yield from starmap(_Answer, rows)

    def _example(self, message: _Message) -> HRMExample:
        example = message.forms[self._checkpoint.conversion]
        try:
            for part in self._converter.parts(example):
                check_fits(part, self._checkpoint.config)
        except (ExampleError, MessageRejected) as error:
            raise ComparisonError(
                f"line {message.index + 1} does not fit checkpoint {self._label}: {error}"
            ) from None
        return example


def _recommend(rule: HaltedBy, pairs: Sequence[PairedFigures]) -> Recommendation:
    leads: Counter[str] = Counter()
    for pair in pairs:
        lead = pair.first_solved - pair.second_solved
        leads.update({pair.first: lead, pair.second: -lead})
    best = max(leads, key=leads.__getitem__)
    against = [
        pair if pair.first == best else pair.turned() for pair in pairs if best in pair.names
    ]
    close = [pair for pair in against if not _is_better(pair)]
    solved = f"{against[0].first_solved:,} of {against[0].examples:,}"
    if close:
        return Recommendation(
            halting=rule,
            recommended=None,
            candidates=(best, *(pair.second for pair in close)),
            reason=f"no recommendation: {best} solves {solved}, but cannot be told from "
            f"{' or '.join(map(_described, close))}",
        )
    return Recommendation(
        halting=rule,
        recommended=best,
        candidates=(best,),
        reason=f"take {best}: it solves {solved}, significantly more than "
        f"{' and '.join(map(_described, against))}",
    )


def _is_better(pair: PairedFigures) -> bool:
    """Whether the first of `pair` solves significantly more."""
    return pair.only_first > pair.only_second and pair.adjusted_p_value < SIGNIFICANT_BELOW


def _described(pair: PairedFigures) -> str:
    """The second of `pair`, and what tells it from the first."""
    p_value = f"= {pair.adjusted_p_value:.2g}" if pair.adjusted_p_value else "< 1e-300"
    return (
        f"{pair.second} ({pair.second_solved:,}; {pair.only_first:,} only {pair.first}, "
        f"{pair.only_second:,} only {pair.second}, p {p_value})"
    )
