"""The precision of a checkpoint: its verdicts in coarser dtypes, compared with those in float32.

Asks two evaluators about every accepted pair, and about completions of it with one change, which a
drifting agent might send. Knows checkpoints and evaluators; nothing of who decides what by the
differences, or of files.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import NamedTuple

import torch

from hrm.checkpoint import Checkpoint
from hrm.checkpoint.precision import Differences, PrecisionCheck, RecordedPrecision
from hrm.evaluation.evaluator import Evaluator, Origin, PendingExample
from hrm.evaluation.recorded import version
from hrm.inference.config import Inference
from hrm.inference.dtypes import Dtypes
from schemas import (
    Category,
    FailurePattern,
    HaltedBy,
    HRMExample,
    MessageRejected,
    SQEHRMError,
)

DTYPES = (torch.bfloat16, torch.int8)
"""The dtypes that a record compares with float32."""

SLOTS = 32
"""Examples computed at once. The results are the same with any number."""

AHEAD = 64
"""Examples submitted before the oldest is answered: enough to fill the slots."""

CACHED_PREDICTIONS = 10_000
"""Predictions to keep: more than those of the examples in work. A prediction depends on the prompt
alone, so changed completions are judged by the one of their pair."""

APPENDED = 6
"""Words that a changed completion has more."""

_ORIGIN = Origin("precision", "precision", Category.OTHER)


class PrecisionError(SQEHRMError):
    """The verdicts cannot be compared."""


class _Asked(NamedTuple):
    example: HRMExample
    pair: HRMExample
    """The accepted pair that was changed, or is the example itself."""

    @property
    def is_pair(self) -> bool:
        return self.example is self.pair

    @property
    def is_longer(self) -> bool:
        """Whether its verdict depends on tokens beyond the accepted end."""
        return len(self.example.target_sequence) > len(self.pair.target_sequence)


class _Answer(NamedTuple):
    judgement: str
    """`solved`, a failure pattern, or `rejected` if the network's answer is not finite."""
    tokens: tuple[int, ...] = ()
    act_steps: int = 0


def measure_precision(
    checkpoint: Checkpoint,
    dtypes: Sequence[torch.dtype] = DTYPES,
    device: torch.device | str = "cpu",
    *,
    threads: int | None = None,
    seconds: float | None = None,
) -> RecordedPrecision:
    """Compare the verdicts of a checkpoint in each of `dtypes` with those in float32.

    Plain torch emulates int8, at some times the cost, if the device cannot compute it.

    Args:
        checkpoint: The checkpoint, with its own number of ACT steps.
        dtypes: Coarser dtypes than float32.
        device: Where to compute.
        threads: CPU threads; None for as many as torch uses.
        seconds: The most to take; None for no limit.

    Raises:
        CheckpointError: Its accepted pairs are damaged.
        PrecisionError: It holds none, or it takes longer.
    """
    asked = _questions(checkpoint)
    deadline = None if seconds is None else time.monotonic() + seconds
    run = _Run(checkpoint, device, threads, deadline)
    exact = run.answers(asked, torch.float32)
    checks = [_check(asked, exact, run.answers(asked, dtype), dtype) for dtype in dtypes]
    pairs = sum(each.is_pair for each in asked)
    return RecordedPrecision(
        digest=checkpoint.digest,
        halt_max_steps=checkpoint.config.halt_max_steps,
        pairs=pairs,
        changed=len(asked) - pairs,
        checks=tuple(checks),
    )


def dtypes_on(device: str, name: str) -> Dtypes:
    """Choose dtypes for checkpoints on `device`, which are compared if they do not record it.

    One CPU thread compares, so that another engine can go on in the meantime.

    Args:
        device: The device, as torch calls it.
        name: The dtype as torch calls it, or `auto`.
    """

    def compare(checkpoint: Checkpoint, seconds: float) -> RecordedPrecision:
        return measure_precision(checkpoint, [torch.int8], device, threads=1, seconds=seconds)

    return Dtypes(name, device, compare)


class _Answers(NamedTuple):
    by_rule: dict[HaltedBy, list[_Answer]]
    computed_by: str


class _Run(NamedTuple):
    """One checkpoint on one device."""

    checkpoint: Checkpoint
    device: torch.device | str
    threads: int | None
    deadline: float | None
    """`time.monotonic` at which it has taken too long."""

    def answers(self, asked: Sequence[_Asked], dtype: torch.dtype) -> _Answers:
        """The answers to all of `asked`, under both halting rules."""
        by_rule, computed_by = {}, ""
        for rule in HaltedBy:
            inference = Inference(
                slots=SLOTS,
                halting=rule,
                dtype=dtype,
                emulated=True,
                threads=self.threads,
                cached_predictions=CACHED_PREDICTIONS,
            )
            engine = inference.engine([self.checkpoint], self.device)
            computed_by = engine.computed_by
            predictor = inference.cached(engine, self.checkpoint.config)
            evaluator = Evaluator(
                self.checkpoint, predictor, device=str(self.device), worker="precision"
            )
            with closing(evaluator):
                by_rule[rule] = list(self._answers(evaluator, asked))
        return _Answers(by_rule, computed_by)

    def _answers(self, evaluator: Evaluator, asked: Sequence[_Asked]) -> Iterator[_Answer]:
        waiting: deque[tuple[PendingExample, bool]] = deque()
        for each in asked:
            pending = evaluator.submit_content(each.example, 0, _ORIGIN, taken=time.perf_counter())
            waiting.append((pending, each.is_pair))
            if len(waiting) > AHEAD:
                yield self._answer(*waiting.popleft())
        for line in waiting:
            yield self._answer(*line)

    def _answer(self, pending: PendingExample, is_pair: bool) -> _Answer:  # noqa: FBT001
        left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        try:
            verdict = pending.result(left).verdict
        except MessageRejected:
            return _Answer("rejected")
        except TimeoutError:
            raise PrecisionError(
                "comparing its verdicts with those in float32 takes too long"
            ) from None
        judgement = verdict.failure_pattern or "solved"
        if not is_pair:
            return _Answer(judgement)
        return _Answer(judgement, verdict.predicted_sequence, verdict.act_steps)


def _check(
    asked: Sequence[_Asked], exact: _Answers, coarse: _Answers, dtype: torch.dtype
) -> PrecisionCheck:
    max_steps, q = (
        _differences(asked, exact.by_rule[rule], coarse.by_rule[rule])
        for rule in (HaltedBy.MAX_STEPS, HaltedBy.Q)
    )
    name = str(dtype).removeprefix("torch.")
    return PrecisionCheck.model_validate(
        {
            "dtype": name,
            "computed_by": coarse.computed_by.removesuffix(f"; {name}"),
            "date": datetime.now(UTC).date(),
            "version": version(),
            "max_steps": max_steps,
            "q": q,
        }
    )


def _differences(
    asked: Sequence[_Asked], exact: Sequence[_Answer], coarse: Sequence[_Answer]
) -> Differences:
    predictions = act_steps = verdicts = patterns_beyond = 0
    for each, ours, theirs in zip(asked, exact, coarse, strict=True):
        predictions += ours.tokens != theirs.tokens
        act_steps += ours.act_steps != theirs.act_steps
        if ours.judgement == theirs.judgement:
            continue
        if each.is_longer and {ours.judgement, theirs.judgement} <= set(FailurePattern):
            patterns_beyond += 1
        else:
            verdicts += 1
    return Differences(
        predictions=predictions,
        act_steps=act_steps,
        verdicts=verdicts,
        patterns_beyond=patterns_beyond,
    )


def _questions(checkpoint: Checkpoint) -> list[_Asked]:
    """The accepted pairs of a checkpoint, each with its changed completions behind it."""
    held = checkpoint.accepted_pairs()
    pairs = [] if held is None else [each.example for each in held]
    if not pairs:
        raise PrecisionError(
            f"checkpoint {checkpoint.name} holds no accepted pairs: sqe-hrm checkpoint record adds "
            "them"
        )
    # Neither conversion nor network take longer ones for sure.
    longest = max(len(pair.target_sequence) for pair in pairs)
    asked = []
    for number, pair in enumerate(pairs):
        asked.append(_Asked(pair, pair))
        # Neighbours in a file are often alike: the other completion comes from half way round.
        other = pairs[(number + len(pairs) // 2) % len(pairs)].target_sequence
        for target in changed_targets(pair.target_sequence, other, number, longest):
            update = {"target_sequence": target, "solution_steps": ()}
            asked.append(_Asked(pair.model_copy(update=update), pair))
    return asked


def changed_targets(
    target: Sequence[int], other: Sequence[int], place: int, longest: int
) -> list[tuple[int, ...]]:
    """Targets with one change: a word replaced, dropped, or swapped with the next; half the words;
    some words more; all words replaced. Without those that equal `target`.

    Args:
        target: Its tokens, with start and end.
        other: Another target, from which new words come.
        place: Number from which the place of the change follows.
        longest: The most tokens of a target.
    """
    start, *words, end = target
    others = list(other[1:-1])
    at = place % max(1, len(words))
    before, after = words[:at], words[at + 1 :]
    changed = (
        [*before, *others[:1], *after],
        [*before, *after],
        [*before, *after[:1], *words[at : at + 1], *after[1:]],
        words[: len(words) // 2],
        [*words, *others[:APPENDED]],
        others,
    )
    made = {(start, *each[: longest - 2], end): None for each in changed}
    return [each for each in made if each != tuple(target)]
