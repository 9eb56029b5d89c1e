"""The verdict of one message: parse, convert, check, infer, score.

Joins conversion, text check, inference and scoring; knows no queue and no metrics server.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, Self

from hrm.checkpoint import CheckpointError, TrainingRecord
from hrm.checkpoint.figures import RecordedFigures
from hrm.data.categories import categorize
from hrm.data.config import ConversionConfig
from hrm.data.conversion import AcceptedPair, Content, Converter
from hrm.evaluation.answers import nearest_of, with_rows
from hrm.evaluation.check import MessageCheck, check_message
from hrm.evaluation.scoring import commonest_token, score
from hrm.evaluation.statistics import wilson_interval
from hrm.inference.cache import without_cache
from hrm.inference.prediction import (
    Answered,
    EngineStatistics,
    InferenceError,
    Prediction,
    Predictor,
    joined,
    submit_when_room,
)
from hrm.model.batch import ExampleError
from hrm.model.config import HRMConfig
from schemas import (
    DEFAULT_MAX_MESSAGE_BYTES,
    Category,
    HaltedBy,
    HRMExample,
    MessageRejected,
    PromptMatch,
    RejectionReason,
    SQEMessage,
    Timings,
    Verdict,
    VerdictText,
    parse_message,
)

KEPT_READINGS = 4096
"""Texts whose tokens, checks and last verdict are kept. Agents send the same known messages again
and again, and all else that is done for one takes as long as to read it, if its prediction is
cached."""

LONGEST_KEPT = 4096
"""Characters of the longest text that is kept, prompt and completion together. So texts of any
language take at most 64 MB; a real message has 2,000 characters at most."""


class Origin(NamedTuple):
    """Origin of an example, as its verdict shows it."""

    message_id: str
    agent_id: str
    category: Category

    @classmethod
    def of(cls, message: SQEMessage) -> Self:
        """The origin of a message. A category that it does not name is guessed from the prompt."""
        return cls(message.message_id, message.agent_id, _category_of(message))


_Inputs = Sequence[Sequence[HRMExample]]
"""The parts of an example, for each puzzle row that holds an accepted answer of its prompt."""


class _Judgement(NamedTuple):
    """Everything that follows from a text and a prediction, whoever sent it."""

    prediction: Prediction
    verdict: Verdict
    """The verdict of one message; those of others differ in ids and times alone."""
    text_of: VerdictText
    confusions: Counter[tuple[str, str]]


@dataclass(eq=False, slots=True)
class _Reading:
    """Everything that follows from a message's text, whoever sent it."""

    example: HRMExample
    check: MessageCheck
    category: Category
    inputs: _Inputs
    judgement: _Judgement | None = None
    """That of the last prediction, which the next one mostly equals."""


class Evaluated(NamedTuple):
    """The result of one example."""

    verdict: Verdict
    confusions: Counter[tuple[str, str]]
    """How often each pair (target, predicted) of different tokens occurred, by their names."""
    completion: Sequence[int]
    """The tokens of the completion, all of its parts."""
    text_of: VerdictText
    """Writes the verdict as JSON, also with other ids and times."""


class SelfTest(NamedTuple):
    """The result of a self-test."""

    solved: int
    pairs: int
    """Number of pairs that were asked for, all of which should be solved."""


class PendingExample:
    """An example in the engine."""

    def __init__(
        self,
        evaluator: "Evaluator",
        reading: _Reading,
        origin: Origin,
        prediction: Future[Prediction],
        clock: "_Clock",
    ) -> None:
        self._evaluator = evaluator
        self._reading = reading
        self._origin = origin
        self._prediction = prediction
        self._clock = clock
        prediction.add_done_callback(lambda _: clock.stop())

    @property
    def example(self) -> HRMExample:
        """The example as the checkpoint reads it."""
        return self._reading.example

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return self._prediction.done()

    def add_done_callback(self, callback: Callable[[], object]) -> None:
        """Call `callback` once when `done`, in the engine's thread: it must be quick."""
        self._prediction.add_done_callback(lambda _: callback())

    def result(self, timeout: float | None = None) -> Evaluated:
        """Wait for the verdict, for at most `timeout` seconds.

        Raises:
            MessageRejected: Evaluation failed, since the network's answer is not finite.
            EngineClosedError: The engine is shutting down.
            TimeoutError: The time is over.
        """
        try:
            prediction = self._prediction.result(timeout)
        except InferenceError as error:
            raise MessageRejected(RejectionReason.EVALUATION_FAILED, str(error)) from None
        # An ordinary future keeps its callbacks, and those may keep this object.
        self._prediction = Answered(prediction)
        self._clock.stop()  # a future wakes its waiters before it calls back
        return self._evaluator.evaluated(
            self._reading, prediction, self._origin, self._clock.timings()
        )


class PendingVerdict(PendingExample):
    """A message in the engine."""

    def __init__(
        self,
        evaluator: "Evaluator",
        message: SQEMessage,
        reading: _Reading,
        prediction: Future[Prediction],
        clock: "_Clock",
    ) -> None:
        origin = Origin(message.message_id, message.agent_id, reading.category)
        super().__init__(evaluator, reading, origin, prediction, clock)
        self.message = message


@dataclass(slots=True)
class _Clock:
    """When a message was taken, converted and answered (`time.perf_counter` seconds)."""

    queued_seconds: float | None
    taken: float
    converted: float
    answered: float = 0.0

    def stop(self) -> None:
        """Only the first call counts."""
        self.answered = self.answered or time.perf_counter()

    def timings(self) -> Timings:
        return Timings(
            queue=self.queued_seconds,
            convert=self.converted - self.taken,
            inference=self.answered - self.converted,
            total=(self.queued_seconds or 0.0) + self.answered - self.taken,
        )


class Model(Protocol):
    """The model that is evaluated: a checkpoint, or several as one."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def config(self) -> HRMConfig: ...  # noqa: D102
    @property
    def conversion(self) -> ConversionConfig: ...  # noqa: D102
    @property
    def training(self) -> TrainingRecord | None: ...  # noqa: D102
    @property
    def figures(self) -> RecordedFigures | None: ...  # noqa: D102
    @property
    def trained_on(self) -> date | None: ...  # noqa: D102


class Evaluator:
    """Evaluates messages with one model. Threads may share an evaluator.

    Args:
        checkpoint: The model whose predictions are evaluated.
        engine: Predicts with the model; the evaluator closes it.
        device: What verdicts call the device.
        worker: What verdicts call this worker.
        max_message_bytes: Limit of prompt and completion together (UTF-8).
        known: Accepted pairs that the model solves by its own record, for the self-test; see
            `hrm.evaluation.known`.
        tester: Agent whose messages are computed anew each time, without the cache, since they test
            the model.

    Raises:
        CheckpointError: The model's conversion gives puzzles that the model does not have.
    """

    def __init__(
        self,
        checkpoint: Model,
        engine: Predictor,
        *,
        device: str,
        worker: str,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        known: Sequence[HRMExample] = (),
        tester: str | None = None,
    ) -> None:
        _check_puzzle_space(checkpoint)
        self.checkpoint = checkpoint
        self.device = device
        self._engine = engine
        self._worker = worker
        self._max_message_bytes = max_message_bytes
        self._known = known
        self._tester = tester
        self.converter = Converter(checkpoint.conversion)
        training = checkpoint.training
        self._baseline = commonest_token(training.target_token_counts) if training else None
        self.training_tokens: Mapping[str, float] = (
            self._shares(training.target_token_counts) if training else {}
        )
        """Share of each token in the targets of the training set, by its name; hashed ones
        together. Empty if there is no record of them."""
        self._kept_reading = lru_cache(maxsize=KEPT_READINGS)(self._reading)

    @property
    def token_names(self) -> Sequence[str]:
        """The name of each token of the vocabulary; hashed ones share one."""
        return self.converter.tokenizer.vocabulary.token_names

    @property
    def checkpoint_name(self) -> str:
        """The checkpoint's name."""
        return self.checkpoint.name

    @property
    def checkpoint_digest(self) -> str:
        """SHA-256 of weights and configuration."""
        return self.checkpoint.digest

    @property
    def dtype(self) -> str:
        """The dtype of activations, or int8 if the levels multiply in it."""
        return str(self._engine.dtype).removeprefix("torch.")

    @property
    def halting(self) -> HaltedBy:
        """The rule by which an example's computation ends."""
        return self._engine.halting

    @property
    def max_steps(self) -> int:
        """Limit of ACT steps of an example."""
        return self._engine.max_steps

    @property
    def statistics(self) -> EngineStatistics:
        """The engine's slots and queue at this moment, and its counts since the start."""
        return self._engine.statistics

    @property
    def recorded_rate(self) -> tuple[float, float, float] | None:
        """Share of accepted pairs that were solved when the model was measured, with its interval.

        Low end, share and high end, by Wilson's score interval of 95 %. None if nothing was
        recorded for this halting rule and limit of ACT steps.
        """
        figures = self.checkpoint.figures
        if figures is None or figures.halt_max_steps != self.max_steps:
            return None
        solved, pairs = figures.accepted.of(self.halting).solved, figures.accepted.messages
        low, high = wilson_interval(solved, pairs)
        return low, solved / pairs, high

    @property
    def trained_on(self) -> date | None:
        """The day of the model's training, if that is recorded."""
        return self.checkpoint.trained_on

    def submit(
        self,
        body: bytes | str | Mapping[str, Any],
        *,
        queued_seconds: float | None = None,
        urgent: bool = True,
    ) -> PendingVerdict:
        """Submit the message in `body` to the engine, and wait only while its queue is full.

        Args:
            body: The message, as JSON or decoded.
            queued_seconds: How long it waited in a queue before.
            urgent: Whether it goes before messages that are not urgent.

        Raises:
            MessageRejected: The message cannot be evaluated.
            EngineClosedError: The evaluator was closed, before or during the wait.
        """
        taken = time.perf_counter()
        message = parse_message(body, max_bytes=self._max_message_bytes)
        reading = self._read(message)
        clock = _Clock(queued_seconds, taken, converted=time.perf_counter())
        engine = self._engine
        if message.agent_id == self._tester:
            engine = without_cache(engine)
        prediction = self._predict(reading.example, reading.inputs, engine, urgent=urgent)
        return PendingVerdict(self, message, reading, prediction, clock)

    def submit_content(
        self, content: Content, line_index: int, origin: Origin, *, taken: float
    ) -> PendingExample:
        """Submit the content of a file's line to the engine; waits and raises as `submit` does.

        Args:
            content: The message, bare pair or converted example.
            line_index: The index of its line in the file, from 0.
            origin: Message and agent it came from.
            taken: `time.perf_counter` before the line was parsed.
        """
        example = self.converter.example_of(content, line_index)
        check = self._check(content, example)
        clock = _Clock(None, taken, converted=time.perf_counter())
        reading = _Reading(example, check, origin.category, self._inputs(example, check))
        prediction = self._predict(example, reading.inputs, self._engine)
        return PendingExample(self, reading, origin, prediction, clock)

    def self_test(self) -> SelfTest:
        """Compute the known pairs anew, without the cache, and count those that are solved.

        Messages go first. Raises `EngineClosedError` if the evaluator is closed meanwhile, and
        `EngineFailedError` if the device fails.
        """
        engine = without_cache(self._engine)
        parts = [self.converter.parts(each) for each in self._known]
        predictions = [self._infer(each, engine, urgent=False) for each in parts]
        solved = 0
        for example, prediction in zip(self._known, predictions, strict=True):
            target = example.target_sequence
            with contextlib.suppress(InferenceError):
                solved += prediction.result().tokens[: len(target)] == target
        return SelfTest(solved, len(self._known))

    def close(self) -> None:
        """Finish the examples in slots, and fail those that wait."""
        self._engine.close()

    def evaluated(
        self, reading: _Reading, prediction: Prediction, origin: Origin, timings: Timings
    ) -> Evaluated:
        """Judge a prediction of a text, and put together the result for one of its senders."""
        judgement = reading.judgement
        if judgement is None or judgement.prediction != prediction:
            judgement = self._judgement(reading, prediction, origin, timings)
            reading.judgement = judgement
        # A copy is not validated, which would take as long as all else that is done here.
        changes = {
            "message_id": origin.message_id,
            "agent_id": origin.agent_id,
            "timings": timings,
            "evaluated_at": datetime.now(UTC),
        }
        verdict = judgement.verdict.model_copy(update=changes)
        completion = reading.example.target_sequence
        return Evaluated(verdict, judgement.confusions, completion, judgement.text_of)

    def _judgement(
        self, reading: _Reading, prediction: Prediction, origin: Origin, timings: Timings
    ) -> _Judgement:
        """Compare a prediction with its target."""
        example, check = reading.example, reading.check
        figures = score(
            prediction.tokens,
            example.target_sequence,
            end=self.converter.tokenizer.vocabulary.end,
            baseline_token=self._baseline,
            length_accepted=check.target_accepted,
        )
        verdict = Verdict(
            message_id=origin.message_id,
            agent_id=origin.agent_id,
            checkpoint=self.checkpoint.name,
            checkpoint_digest=self.checkpoint.digest,
            puzzle_id=example.puzzle_id,
            solved=figures.solved,
            token_accuracy=figures.token_accuracy,
            edit_similarity=figures.edit_similarity,
            correct_tokens=figures.correct_tokens,
            target_tokens=figures.target_tokens,
            predicted_sequence=prediction.tokens[: figures.target_tokens],
            known=check.match is PromptMatch.PAIR,
            match=check.match,
            text=check.text,
            truncated=check.truncated,
            unread_words=check.unread_words,
            act_steps=prediction.act_steps,
            halted_by=prediction.halted_by,
            q_halt=prediction.q_halt,
            q_continue=prediction.q_continue,
            q_flips=prediction.q_flips,
            difficulty=example.metadata.difficulty,
            category=reading.category,
            failure_pattern=figures.failure_pattern,
            timings=timings,
            device=self.device,
            dtype=self.dtype,
            worker=self._worker,
            evaluated_at=datetime.now(UTC),
        )
        confusions = self._named(figures.confusions)
        return _Judgement(prediction, verdict, VerdictText(verdict), confusions)

    def _named(self, confusions: Mapping[tuple[int, int], int]) -> Counter[tuple[str, str]]:
        """Confusions by the names of tokens instead of the tokens themselves."""
        named: Counter[tuple[str, str]] = Counter()
        if not confusions:
            return named
        vocabulary = self.converter.tokenizer.vocabulary
        for pair, count in confusions.items():
            named[vocabulary.group_names(*pair)] += count
        return named

    def _shares(self, counts: Sequence[int]) -> dict[str, float]:
        """Shares of tokens by name, from their counts by token."""
        vocabulary = self.converter.tokenizer.vocabulary
        shares = dict.fromkeys(vocabulary.groups, 0.0)
        for token, count in enumerate(counts):
            name, _ = vocabulary.group_names(token, token)
            shares[name] += count / max(1, sum(counts))
        return shares

    def _read(self, message: SQEMessage) -> _Reading:
        is_kept = len(message.prompt) + len(message.completion) <= LONGEST_KEPT
        read = self._kept_reading if is_kept else self._reading
        return read(
            message.prompt, message.completion, message.puzzle_id, message.task, message.category
        )

    def _reading(
        self,
        prompt: str,
        completion: str,
        puzzle_id: int | None,
        task: str | None,
        category: Category | None,
    ) -> _Reading:
        """Convert and check a text. Its arguments are all that this follows from."""
        content = AcceptedPair(
            prompt=prompt, completion=completion, puzzle_id=puzzle_id, task=task, category=category
        )
        example = self.converter.example_of(content)
        check = self._check(content, example)
        return _Reading(example, check, _category_of(content), self._inputs(example, check))

    def _check(self, content: Content, example: HRMExample) -> MessageCheck:
        named = self.converter.named_puzzle(content)
        return check_message(content, example, self.checkpoint.training, named)

    def _inputs(self, example: HRMExample, check: MessageCheck) -> _Inputs:
        """The parts of an example; if its prompt has several accepted answers, with each row."""
        rows = with_rows(example, check.rows)
        for each in rows:
            self._check_puzzle(each)
        return [self.converter.parts(each) for each in rows]

    def _predict(
        self, example: HRMExample, inputs: _Inputs, engine: Predictor, *, urgent: bool = True
    ) -> Future[Prediction]:
        predictions = [self._infer(parts, engine, urgent=urgent) for parts in inputs]
        return nearest_of(predictions, example.target_sequence)

    def _infer(
        self, parts: Sequence[HRMExample], engine: Predictor, *, urgent: bool
    ) -> Future[Prediction]:
        try:
            return joined([submit_when_room(engine, part, urgent=urgent) for part in parts])
        except ExampleError as error:
            raise MessageRejected(RejectionReason.TOO_LARGE, str(error)) from None

    def _check_puzzle(self, example: HRMExample) -> None:
        rows = self.checkpoint.config.num_puzzle_identifiers
        if example.puzzle_id >= rows:
            raise MessageRejected(
                RejectionReason.PUZZLE_OUT_OF_RANGE,
                f"puzzle_id {_shortened(example.puzzle_id)}, but checkpoint {self.checkpoint.name} "
                f"has puzzles 0 to {rows - 1}: send one of them, or none",
            )


def _category_of(content: SQEMessage | AcceptedPair) -> Category:
    return content.category or categorize(content.prompt)


def _shortened(number: int) -> str:
    """Write `number` in a few characters, even if it has a thousand digits."""
    return str(number) if number < 10**18 else "beyond 10^18"


def _check_puzzle_space(checkpoint: Model) -> None:
    space, rows = checkpoint.conversion.puzzle_space, checkpoint.config.num_puzzle_identifiers
    for task in checkpoint.conversion.tasks:
        if task.row >= rows:
            raise CheckpointError(
                f"checkpoint {checkpoint.name}: task {task.name} has row {task.row}, but the table "
                f"has {rows}: restore the config.json of these weights"
            )
    if space > rows:
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: puzzle_space {space} exceeds its table of {rows} "
            "puzzles: set puzzle_space in config.json to at most that"
        )
