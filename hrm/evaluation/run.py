"""Evaluates a file of any length: lines into the engine, verdicts out, figures counted.

Joins reading, conversion, inference and counting; knows no terminal. A bounded number of examples
is held at a time, so memory does not grow with the file.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from hrm.data.categories import categorize
from hrm.data.conversion import Converter
from hrm.data.files import AcceptedPair, RefusedLine, parse_line_or_example, read_lines
from hrm.data.vocabulary import Tokenizer
from hrm.evaluation.baselines import Baseline, TargetCounter
from hrm.evaluation.counters import EvaluationCounter
from hrm.evaluation.evaluator import Evaluator, Origin, PendingExample
from hrm.evaluation.report import EvaluationReport, Setting
from schemas import (
    DEFAULT_MAX_MESSAGE_BYTES,
    Category,
    HRMExample,
    MessageRejected,
    SQEMessage,
    Verdict,
)

AGENT_ID = "file"
"""In the verdict of a line that names no agent."""

UNANSWERED_PER_SLOT = 2
"""Examples in the engine at a time: while one round of slots is computed, the next waits."""

MAX_BEHIND = 4096
"""Examples from the oldest that is unanswered to the newest. Verdicts come in the file's order
whatever halts first; more than this is never kept back for one that takes all its steps."""


def fit_baselines(
    source: BinaryIO,
    name: str,
    tokenizer: Tokenizer,
    *,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    on_refused: Callable[[RefusedLine], None],
) -> tuple[Baseline, ...]:
    """The baselines of the training pairs in `source`; none if it has no pair.

    Lines are messages, bare pairs or converted examples. Each refused line goes to `on_refused`
    and the rest goes on.
    """
    counter = TargetCounter()
    parse = partial(parse_line_or_example, max_message_bytes=max_message_bytes)
    for _, content in read_lines(source, parse, max_message_bytes=max_message_bytes):
        if isinstance(content, RefusedLine):
            on_refused(content)
        elif isinstance(content, HRMExample):
            counter.add(content.target_sequence)
        else:
            counter.add(tokenizer.sequence(content.completion))
    return counter.baselines(f"{counter.targets} targets of {name}") if counter.targets else ()


def evaluate_file(
    source: BinaryIO,
    name: str,
    evaluator: Evaluator,
    *,
    baselines: Sequence[Baseline] = (),
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    on_refused: Callable[[RefusedLine], None],
    on_verdict: Callable[[Verdict], None],
) -> EvaluationReport:
    """Evaluate every line of `source`: a message, a bare pair or a converted example.

    `name` is what the report calls the data. A line that cannot be evaluated goes to `on_refused`,
    and the rest goes on. Verdicts go to `on_verdict` in the order of their lines. A line without
    `message_id` is `line:N`, N from 1; the verdict of a converted example has category `other`.
    """
    counter = EvaluationCounter(evaluator.max_steps, baselines)
    started = time.perf_counter()
    for line in _in_order(_submit_lines(source, evaluator, max_message_bytes), evaluator.slots):
        outcome = line.outcome() if isinstance(line, _Line) else line
        if isinstance(outcome, RefusedLine):
            counter.refuse(outcome.reason)
            on_refused(outcome)
        else:
            counter.add(outcome.verdict, outcome.target, converted=outcome.converted)
            on_verdict(outcome.verdict)
    return counter.report(
        name,
        _setting(evaluator),
        time.perf_counter() - started,
        recorded=evaluator.checkpoint.training is not None,
    )


def _setting(evaluator: Evaluator) -> Setting:
    return Setting(
        checkpoint=evaluator.checkpoint_name,
        checkpoint_digest=evaluator.checkpoint_digest,
        trained_max_steps=evaluator.checkpoint.config.halt_max_steps,
        device=evaluator.device,
        dtype=evaluator.dtype,
        batch_size=evaluator.slots,
        halting=evaluator.halting,
        max_steps=evaluator.max_steps,
    )


@dataclass(frozen=True)
class _Line:
    """A line in the engine."""

    number: int
    pending: PendingExample
    converted: bool
    """The line held an example; otherwise a message."""

    def outcome(self) -> "_Answered | RefusedLine":
        """Waits for the engine."""
        try:
            verdict = self.pending.result()
        except MessageRejected as rejected:
            return RefusedLine(self.number, rejected.reason, rejected.detail)
        return _Answered(verdict, self.pending.example.target_sequence, self.converted)


@dataclass(frozen=True)
class _Answered:
    """A line that the engine answered."""

    verdict: Verdict
    target: tuple[int, ...]
    converted: bool


@dataclass(frozen=True)
class _Parsed:
    """What a line holds, and when its parsing began."""

    taken: float
    content: SQEMessage | AcceptedPair | HRMExample


def _submit_lines(
    source: BinaryIO, evaluator: Evaluator, max_message_bytes: int
) -> Iterator[_Line | RefusedLine]:
    converter = Converter(evaluator.checkpoint.conversion)

    def parse(line: bytes) -> _Parsed:
        taken = time.perf_counter()
        return _Parsed(taken, parse_line_or_example(line, max_message_bytes=max_message_bytes))

    for index, parsed in read_lines(source, parse, max_message_bytes=max_message_bytes):
        if isinstance(parsed, RefusedLine):
            yield parsed
            continue
        content = parsed.content
        try:
            if isinstance(content, HRMExample):
                example = content
            else:
                example = converter.convert(
                    content.prompt, content.completion, content.puzzle_id, index
                )
            origin = _origin(content, index + 1)
            pending = evaluator.submit_example(example, origin, taken=parsed.taken)
        except MessageRejected as rejected:
            yield RefusedLine(index + 1, rejected.reason, rejected.detail)
            continue
        yield _Line(index + 1, pending, converted=isinstance(content, HRMExample))


def _origin(content: SQEMessage | AcceptedPair | HRMExample, number: int) -> Origin:
    if isinstance(content, SQEMessage):
        return Origin.of(content)
    category = Category.OTHER
    if isinstance(content, AcceptedPair):
        category = content.category or categorize(content.prompt)
    return Origin(f"line:{number}", AGENT_ID, category)


def _in_order(
    submitted: Iterator[_Line | RefusedLine], slots: int
) -> Iterator[_Line | RefusedLine]:
    """The lines of `submitted`, in order, as they are answered.

    Takes no more of them at a time than keep the engine busy.
    """
    room = threading.Semaphore(slots * UNANSWERED_PER_SLOT)
    waiting: deque[_Line | RefusedLine] = deque()
    while True:
        room.acquire()  # released by the engine: no `with`
        line = next(submitted, None)
        if line is None:
            break
        waiting.append(line)
        if isinstance(line, RefusedLine):
            room.release()
        else:
            line.pending.add_done_callback(room.release)
        while waiting and (_is_answered(waiting[0]) or len(waiting) >= MAX_BEHIND):
            yield waiting.popleft()
    yield from waiting


def _is_answered(line: _Line | RefusedLine) -> bool:
    return isinstance(line, RefusedLine) or line.pending.done()
