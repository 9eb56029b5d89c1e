"""The pairs lost if one checkpoint takes the place of another: both answer the accepted pairs.

Knows two checkpoints and pairs, as messages or as examples; nothing of the registry's file, of
terminals or of options.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import islice

import torch
from pydantic import BaseModel, ConfigDict, Field

from hrm.checkpoint import Checkpoint, pair_hash
from hrm.checkpoint.registry import Promoted, PromotionFigures
from hrm.data.config import ConversionConfig, PuzzlePolicy
from hrm.data.conversion import Content, Converter
from hrm.evaluation.evaluator import Evaluator, Origin, PendingExample
from hrm.evaluation.outcomes import DistinctExamples
from hrm.inference.config import Inference
from schemas import Category, HaltedBy, HRMExample, MessageRejected, Verdict

PROMPT_CHARACTERS = 40
"""Characters of a lost pair's prompt that are shown: enough to find it, and a row of a table."""

_BATCH = 1024
"""Pairs answered by one engine before the next: engines that take turns do not share cores."""


class Loss(StrEnum):
    """Why a pair is lost."""

    NOT_SOLVED = "not solved"
    """The new checkpoint answers otherwise."""
    UNKNOWN = "unknown"
    """The new checkpoint was not trained on it, so the alarm would no longer count it."""
    NOT_IN_FILE = "not in the file"
    """The file of messages has not got it and the old checkpoint holds no tokens of it, so nobody
    can tell."""


class LostPair(BaseModel):
    """A pair that the old checkpoint holds and the new one does not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: Loss
    rules: tuple[HaltedBy, ...] = Field(description="The halting rules under which it is lost.")
    pair: str = Field(description="Hash of puzzle and input, as the old checkpoint has them.")
    puzzle_id: int | None = Field(description="Null if only the hash is known.")
    line: int | None = Field(description="Its line in the file, from 1; null if it came from none.")
    prompt: str | None = Field(
        description=f"Its first {PROMPT_CHARACTERS} characters; null if only tokens are known."
    )


@dataclass(frozen=True)
class Comparison:
    """An old and a new checkpoint on the same pairs."""

    figures: tuple[PromotionFigures, ...]
    lost: tuple[LostPair, ...]


class PromotionReport(BaseModel):
    """A promotion, whether it was made or refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    promoted: bool
    checkpoint: Promoted
    replaced: Promoted | None = Field(description="What was current before; null if nothing was.")
    compared_with: Promoted | None = Field(
        description="The old checkpoint of the figures; null if the new one was measured alone."
    )
    data: str | None = Field(description="The file of messages, if one was given.")
    conversions_differ: bool = Field(
        description="Whether the two read messages differently. Puzzle ids and tokens in the "
        "verdicts of a worker then mean something else than before."
    )
    decision: str
    figures: tuple[PromotionFigures, ...]
    lost: tuple[LostPair, ...]


def reads_alike(old: ConversionConfig, new: ConversionConfig) -> bool:
    """Whether an example that `old` made is the same pair to `new`.

    Tokens and puzzles have to be chosen alike. New tasks that messages name do no harm, since no
    earlier pair named them; a template could claim prompts that had other puzzles.
    """
    added = [task for task in new.tasks if task not in old.tasks]
    return (
        _without_tasks(old) == _without_tasks(new)
        and len(added) + len(old.tasks) == len(new.tasks)
        and not any(task.template for task in added)
    )


def compare_on_pairs(
    old: Checkpoint | None,
    new: Checkpoint,
    lines: Iterable[tuple[int, Content]],
    held: Iterable[HRMExample] | None,
    rules: Sequence[HaltedBy],
    inference: Inference,
    device: torch.device | str = "cpu",
) -> Comparison:
    """Run both checkpoints over the same pairs, as a worker would; equal pairs count once.

    A pair is lost under a rule if the old checkpoint solves it and the new one does not; or if the
    old one solves it and was trained on it, and the new one was not. A message that a checkpoint
    cannot read or has no puzzle row for is one that it does not solve.

    Args:
        old: What was `current`; None to measure the new one alone.
        new: What is to become `current`.
        lines: Messages of a file, each with its index from 0. They say what is accepted for their
            prompts.
        held: The pairs that the old checkpoint (the new one, if there is no old one) holds, as
            examples of its conversion, which the other reads alike. Those whose prompts are in
            `lines` are left out. With None, recorded pairs of the old one that are not in `lines`
            are lost.
        rules: The halting rules.
        inference: How examples are answered; its halting rule does not count.
        device: Device of the checkpoints.
    """
    counts = {rule: _Counts() for rule in rules}
    distinct, covered = DistinctExamples(), set[str]()
    lost: list[LostPair] = []

    def count(cases: Iterator[_Case]) -> None:
        for case in cases:
            before, after = case.results
            if before is not None and case.line is not None:
                covered.add(before.pair)
            dropped = before is not None and before.known and not (after and after.known)
            lost_by = [
                rule
                for rule, counted in counts.items()
                if counted.add(_solved(before, rule), _solved(after, rule), dropped)
            ]
            if lost_by and before is not None:
                lost.append(_lost(case, before, lost_by, dropped=dropped))

    with ExitStack() as stack:
        sides = [
            None if each is None else _Side(each, rules, inference, device, stack)
            for each in (old, new)
        ]
        count(_judged((_Case(content, index) for index, content in lines), sides, distinct))
        # All lines are counted by now: what they say is accepted goes before what was held.
        others = (_Case(each, None) for each in held or () if _pair(each) not in covered)
        count(_judged(others, sides, distinct))
    missing: list[str] = []
    if old is not None and old.training is not None and held is None:
        missing = sorted(old.training.pair_hashes - covered)
        lost += [_missing(pair, rules) for pair in missing]
    return Comparison(
        tuple(counted.figures(rule, len(missing)) for rule, counted in counts.items()), tuple(lost)
    )


@dataclass
class _Result:
    """One checkpoint's result for a pair."""

    pair: str
    puzzle_id: int
    known: bool = False
    solved: set[HaltedBy] = field(default_factory=set)


@dataclass
class _Case:
    content: Content
    index: int | None
    """The line's index in its file; None for a pair that a checkpoint holds."""
    results: tuple[_Result | None, _Result | None] = (None, None)
    """Results of the old and the new one; None if there is none or it cannot read the pair."""

    @property
    def line(self) -> int | None:
        return None if self.index is None else self.index + 1


class _Side:
    """One checkpoint, with an engine for each halting rule, which `stack` closes."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        rules: Sequence[HaltedBy],
        inference: Inference,
        device: torch.device | str,
        stack: ExitStack,
    ) -> None:
        self._converter = Converter(checkpoint.conversion)
        self._evaluators = {
            rule: stack.enter_context(
                closing(
                    Evaluator(
                        checkpoint,
                        replace(inference, halting=rule).open(checkpoint, device),
                        device=str(device),
                        worker=_ORIGIN.agent_id,
                    )
                )
            )
            for rule in rules
        }

    def example(self, case: _Case) -> HRMExample | None:
        """The case as this checkpoint reads it; None if it cannot."""
        try:
            return self._converter.example_of(case.content, case.index)
        except MessageRejected:
            return None

    def results(self, cases: Sequence[_Case]) -> list[_Result | None]:
        results = [
            None if example is None else _Result(_pair(example), example.puzzle_id)
            for example in map(self.example, cases)
        ]
        for rule, evaluator in self._evaluators.items():
            pending = [
                _submitted(evaluator, case) if result else None
                for case, result in zip(cases, results, strict=True)
            ]
            for result, waiting in zip(results, pending, strict=True):
                verdict = None if waiting is None else _verdict(waiting)
                if result is not None and verdict is not None:
                    result.known = verdict.known
                    if verdict.solved:
                        result.solved.add(rule)
        return results


_ORIGIN = Origin("promotion", "promotion", Category.OTHER)
"""Origin in all verdicts here: they go nowhere."""


def _submitted(evaluator: Evaluator, case: _Case) -> PendingExample | None:
    """The case in the engine; None if the network has no room or no puzzle for it."""
    index = case.index or 0  # a held example has a puzzle, so no line chooses it
    try:
        return evaluator.submit_content(case.content, index, _ORIGIN, taken=time.perf_counter())
    except MessageRejected:
        return None


def _verdict(pending: PendingExample) -> Verdict | None:
    """The verdict; None if the network's answer is not finite."""
    try:
        return pending.result().verdict
    except MessageRejected:
        return None


def _judged(
    cases: Iterator[_Case], sides: Sequence[_Side | None], distinct: DistinctExamples
) -> Iterator[_Case]:
    """Each case that is no repeat, with its results."""
    fresh = (case for case in cases if _is_fresh(case, sides, distinct))
    while batch := list(islice(fresh, _BATCH)):
        old, new = ([None] * len(batch) if side is None else side.results(batch) for side in sides)
        for case, *results in zip(batch, old, new, strict=True):
            case.results = (results[0], results[1])
            yield case


def _is_fresh(case: _Case, sides: Sequence[_Side | None], distinct: DistinctExamples) -> bool:
    forms = [form for side in sides if side is not None and (form := side.example(case))]
    count = len(distinct)
    return not forms or distinct.position(forms, "") == count


def _solved(result: _Result | None, rule: HaltedBy) -> bool:
    return result is not None and rule in result.solved


def _pair(example: HRMExample) -> str:
    return pair_hash(example.puzzle_id, example.input_sequence)


@dataclass
class _Counts:
    both: int = 0
    only_old: int = 0
    only_new: int = 0
    neither: int = 0
    unknown: int = 0

    def add(self, old: bool, new: bool, dropped: bool) -> bool:  # noqa: FBT001
        """Count a pair, and return whether it is lost."""
        self.both += old and new
        self.only_old += old and not new
        self.only_new += new and not old
        self.neither += not (old or new)
        self.unknown += old and new and dropped
        return old and (dropped or not new)

    def figures(self, rule: HaltedBy, unjudged: int) -> PromotionFigures:
        return PromotionFigures(
            halting=rule,
            pairs=self.both + self.only_old + self.only_new + self.neither,
            both=self.both,
            only_old=self.only_old,
            only_new=self.only_new,
            neither=self.neither,
            unknown=self.unknown,
            unjudged=unjudged,
        )


def _lost(case: _Case, before: _Result, rules: Sequence[HaltedBy], *, dropped: bool) -> LostPair:
    prompt = None
    if not isinstance(case.content, HRMExample):
        prompt = " ".join(case.content.prompt.split())
        if len(prompt) > PROMPT_CHARACTERS:
            prompt = f"{prompt[: PROMPT_CHARACTERS - 1]}…"
    return LostPair(
        loss=Loss.UNKNOWN if dropped else Loss.NOT_SOLVED,
        rules=tuple(rules),
        pair=before.pair,
        puzzle_id=before.puzzle_id,
        line=case.line,
        prompt=prompt,
    )


def _missing(pair: str, rules: Sequence[HaltedBy]) -> LostPair:
    return LostPair(
        loss=Loss.NOT_IN_FILE,
        rules=tuple(rules),
        pair=pair,
        puzzle_id=None,
        line=None,
        prompt=None,
    )


def _without_tasks(conversion: ConversionConfig) -> ConversionConfig:
    """`conversion` for messages that name no task."""
    policy = conversion.puzzle_policy
    if policy is PuzzlePolicy.TASK:
        policy = PuzzlePolicy.PROMPT_HASH
    return conversion.model_copy(update={"puzzle_policy": policy, "tasks": ()})
