"""Evaluation of a file of any length: its lines go into the engine, verdicts come out and count.

Joins reading, conversion, inference and counting; knows no terminal. Holds a bounded number of
examples at a time, so memory does not grow with the file.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from hrm.data.categories import categorize
from hrm.data.conversion import AcceptedPair, Content, Converter, name_of
from hrm.data.files import DEFAULT_READER, LineReader, RefusedLine
from hrm.evaluation.baselines import Baseline, TargetCounter
from hrm.evaluation.counters import EvaluationCounter
from hrm.evaluation.evaluator import Evaluator, Origin, PendingExample
from hrm.evaluation.lookup import MAX_NEIGHBOURS, TrainingPairs
from hrm.evaluation.report import EvaluationReport, Setting
from schemas import Category, HRMExample, MessageRejected, SQEMessage, Verdict

AGENT_ID = "file"
"""The `agent_id` in the verdict of a line that names no agent."""

UNANSWERED_PER_SLOT = 2
"""Examples per slot that are in the engine at a time: while one fills the slot, one waits."""

MAX_BEHIND = 4096
"""Longest distance, in examples, between the oldest unanswered example and the newest. Verdicts
come in the file's order, whichever example halts first; this limits how many are held back behind
one that takes all its steps."""


def fit_baselines(
    source: BinaryIO,
    name: str,
    converter: Converter,
    *,
    reader: LineReader = DEFAULT_READER,
    on_refused: Callable[[RefusedLine], None],
    on_left_out: Callable[[str], None],
) -> tuple[Baseline, ...]:
    """Make the baselines from the training pairs in `source`; without any pair there are none.

    Memory grows with the distinct pairs, as `hrm.evaluation.lookup` says.

    Args:
        source: The JSONL file of messages, bare pairs or converted examples.
        name: What the report calls the file.
        converter: Turns messages into examples, as the checkpoint was trained.
        reader: Reads and judges the lines.
        on_refused: Called with each refused line when it is met; later lines still count.
        on_left_out: Called with the reason why a baseline is left out.
    """
    counter, pairs = TargetCounter(converter.tokenizer.vocabulary.size), TrainingPairs()
    for index, content in reader.contents(source):
        if isinstance(content, RefusedLine):
            on_refused(content)
            continue
        try:
            example = converter.example_of(content, index)
        except MessageRejected as rejected:
            on_refused(RefusedLine.of(index, rejected))
            continue
        counter.add(example.target_sequence)
        pairs.add(example)
    if not counter.targets:
        return ()
    if len(pairs) > MAX_NEIGHBOURS:
        on_left_out(
            f"{len(pairs):,} different training pairs: the nearest neighbour is left out above "
            f"{MAX_NEIGHBOURS:,}, since it compares every example with each of them"
        )
    fitted_on = f"{counter.targets:,} training pairs of {name}"
    return (*counter.baselines(fitted_on), *pairs.baselines(fitted_on))


def evaluate_file(
    source: BinaryIO,
    name: str,
    evaluator: Evaluator,
    *,
    reader: LineReader = DEFAULT_READER,
    baselines: Sequence[Baseline] = (),
    on_refused: Callable[[RefusedLine], None],
    on_verdict: Callable[[Verdict], None],
    on_example: Callable[[HRMExample, Verdict], None] | None = None,
) -> EvaluationReport:
    """Evaluate every line of `source`.

    A line without `message_id` is called `line:N`, with N from 1. The verdict of a converted
    example has the category `other`.

    Args:
        source: The JSONL file of messages, bare pairs or converted examples.
        name: What the report calls the file.
        evaluator: Evaluates the examples.
        reader: Reads and judges the lines.
        baselines: Guesses to compare the checkpoint with.
        on_refused: Called with each line that cannot be evaluated; later lines still are.
        on_verdict: Called with every verdict, in the order of the lines.
        on_example: Called with every example and its verdict, in the same order.
    """
    counter = EvaluationCounter(
        evaluator.max_steps,
        evaluator.converter.tokenizer.vocabulary,
        baselines,
        evaluator.checkpoint.training,
    )

    def refuse(line: RefusedLine) -> None:
        counter.refuse(line.reason)
        on_refused(line)

    started = time.perf_counter()
    slots = evaluator.statistics.slots
    for line in _in_order(_submit_lines(source, reader, evaluator), slots):
        if isinstance(line, RefusedLine):
            refuse(line)
            continue
        try:
            verdict = line.pending.result().verdict
        except MessageRejected as rejected:
            refuse(RefusedLine.of(line.index, rejected))
            continue
        counter.add(verdict, line.pending.example, converted=line.converted)
        on_verdict(verdict)
        if on_example is not None:
            on_example(line.pending.example, verdict)
    return counter.report(name, setting_of(evaluator), time.perf_counter() - started)


def setting_of(evaluator: Evaluator) -> Setting:
    """The checkpoint of `evaluator`, and how it is run."""
    return Setting(
        checkpoint=evaluator.checkpoint_name,
        checkpoint_digest=evaluator.checkpoint_digest,
        trained_max_steps=evaluator.checkpoint.config.halt_max_steps,
        device=evaluator.device,
        dtype=evaluator.dtype,
        batch_size=evaluator.statistics.slots,
        halting=evaluator.halting,
        max_steps=evaluator.max_steps,
    )


@dataclass(frozen=True)
class _Line:
    """A line in the engine."""

    index: int
    pending: PendingExample
    converted: bool
    """Whether the line held an example; otherwise it held a message."""


def _submit_lines(
    source: BinaryIO, reader: LineReader, evaluator: Evaluator
) -> Iterator[_Line | RefusedLine]:
    for index, line in reader.lines(source):
        taken = time.perf_counter()
        try:
            content = reader.content(line)
            origin = _origin(content, index)
            pending = evaluator.submit_content(content, index, origin, taken=taken)
        except MessageRejected as rejected:
            yield RefusedLine.of(index, rejected)
            continue
        yield _Line(index, pending, converted=isinstance(content, HRMExample))


def _origin(content: Content, index: int) -> Origin:
    if isinstance(content, SQEMessage):
        return Origin.of(content)
    category = Category.OTHER
    if isinstance(content, AcceptedPair):
        category = content.category or categorize(content.prompt)
    return Origin(name_of(content, index), AGENT_ID, category)


def _in_order(
    submitted: Iterator[_Line | RefusedLine], slots: int
) -> Iterator[_Line | RefusedLine]:
    """Yield the lines of `submitted` in order, each as soon as it and all before it are answered.

    Takes only as many at a time as keep the engine busy.
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
