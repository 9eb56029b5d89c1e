"""A choice among several checkpoints, by how many of the same messages each solves.

Knows inference, solve rates and their intervals; nothing of weights, files, terminals or tables.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from pydantic import BaseModel, ConfigDict, Field

from hrm.checkpoint import Checkpoint
from hrm.data.conversion import Content, Converter
from hrm.evaluation.check import check_message
from hrm.evaluation.measurement import MEASURE_BATCH, RuleFigures, measure
from hrm.evaluation.statistics import Share
from hrm.model.batch import ExampleError, check_fits, encode
from schemas import HaltedBy, HRMExample, PromptMatch, SQEHRMError

WEIGHTS_ALONE = (
    "no recommendation: weights alone do not tell which checkpoint is better; "
    "measure them on messages"
)


class ComparisonError(SQEHRMError):
    """Checkpoints that cannot be measured on the same messages."""


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CheckpointFigures(_Report):
    """Figures of one checkpoint's inference over the messages, under one halting rule."""

    checkpoint: str
    halting: HaltedBy
    solved: Share
    known: int = Field(description="Examples that this checkpoint was trained on.")
    token_accuracy: float = Field(description="Mean over the examples.")
    q_accuracy: float = Field(description="Share of examples whose q_halt is right.")
    mean_act_steps: float


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
) -> list[CheckpointFigures]:
    """Run every checkpoint over the same messages, under each of `rules`.

    Each checkpoint converts messages as it was trained to. Without any message the result is empty.

    Args:
        checkpoints: The checkpoints.
        lines: Messages, each with its index from 0. They are read once and never held all at once.
        rules: The halting rules.
        device: Device of the checkpoints.

    Raises:
        ComparisonError: One of the checkpoints cannot take a message.
    """
    candidates = [
        _Candidate(label, checkpoint, rules, device)
        for label, checkpoint in zip(labels_of(checkpoints), checkpoints, strict=True)
    ]
    remaining, found = iter(lines), False
    while batch := list(islice(remaining, MEASURE_BATCH)):
        found = True
        for candidate in candidates:
            candidate.add(batch)
    if not found:
        return []
    return [candidate.measured(rule) for rule in rules for candidate in candidates]


def recommend(measured: Sequence[CheckpointFigures]) -> list[Recommendation]:
    """Recommend for each halting rule the checkpoint that solves most, if its interval lies above
    all others.

    Without measurements the one recommendation says that there can be none.
    """
    if not measured:
        return [Recommendation(halting=None, recommended=None, candidates=(), reason=WEIGHTS_ALONE)]
    rules = dict.fromkeys(figures.halting for figures in measured)
    return [
        _recommend(rule, [figures for figures in measured if figures.halting is rule])
        for rule in rules
    ]


class _Candidate:
    """A checkpoint, and its figures so far."""

    def __init__(
        self,
        label: str,
        checkpoint: Checkpoint,
        rules: Sequence[HaltedBy],
        device: torch.device | str,
    ) -> None:
        self._label = label
        self._checkpoint = checkpoint
        self._device = device
        self._converter = Converter(checkpoint.conversion)
        self._network = checkpoint.build(device=device)
        self._known = 0
        self._parts: dict[HaltedBy, list[RuleFigures]] = {rule: [] for rule in rules}

    def add(self, lines: Sequence[tuple[int, Content]]) -> None:
        examples = [self._example(index, content) for index, content in lines]
        checks = [
            check_message(content, example, self._checkpoint.training)
            for (_, content), example in zip(lines, examples, strict=True)
        ]
        self._known += sum(check.match is PromptMatch.PAIR for check in checks)
        accepted = torch.tensor([check.length_accepted for check in checks], device=self._device)
        batch = encode(examples, self._checkpoint.config).to(self._device)
        for rule, parts in self._parts.items():
            parts.append(measure(self._network, batch, rule, accepted))

    def measured(self, rule: HaltedBy) -> CheckpointFigures:
        parts = self._parts[rule]
        total = sum(part.examples for part in parts)
        return CheckpointFigures(
            checkpoint=self._label,
            halting=rule,
            solved=Share.measured(sum(part.solved for part in parts), total),
            known=self._known,
            token_accuracy=sum(part.token_accuracy * part.examples for part in parts) / total,
            q_accuracy=sum(part.q_accuracy * part.examples for part in parts) / total,
            mean_act_steps=sum(part.mean_act_steps * part.examples for part in parts) / total,
        )

    def _example(self, index: int, content: Content) -> HRMExample:
        example = self._converter.example_of(content, index)
        try:
            check_fits(example, self._checkpoint.config)
        except ExampleError as error:
            raise ComparisonError(
                f"line {index + 1} does not fit checkpoint {self._label}: {error}"
            ) from None
        return example


def _recommend(rule: HaltedBy, measured: Sequence[CheckpointFigures]) -> Recommendation:
    ordered = sorted(measured, key=lambda figures: figures.solved.count, reverse=True)
    best = ordered[0]
    others = [figures for figures in ordered[1:] if _reaches(figures.solved, best.solved)]
    candidates = (best.checkpoint, *(figures.checkpoint for figures in others))
    if others:
        return Recommendation(
            halting=rule,
            recommended=None,
            candidates=candidates,
            reason=f"no recommendation: the 95 % intervals of {_enumerated(candidates)} overlap, "
            "so this data cannot tell them apart",
        )
    return Recommendation(
        halting=rule,
        recommended=best.checkpoint,
        candidates=candidates,
        reason=f"take {best.checkpoint}: the 95 % interval of its solve rate lies above all others",
    )


def _reaches(other: Share, best: Share) -> bool:
    """Whether the interval of `other` touches or overlaps that of `best`."""
    return other.high is None or best.low is None or other.high >= best.low


def _enumerated(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
