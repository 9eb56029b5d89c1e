"""The drift test: which changes of accepted completions an evaluator notices, counted by kind.

Joins changes and verdicts; knows no terminal. Every changed completion gets a verdict of its own,
as if an agent had sent it. Holds a bounded number of messages and examples, so memory does not grow
with the file.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field

from hrm.data.changes import Change, ChangeKind, Replacements, change_at, places
from hrm.data.conversion import AcceptedPair
from hrm.data.files import DEFAULT_READER, LineReader, RefusedLine
from hrm.data.texts import TextHashes
from hrm.evaluation.check import check_message
from hrm.evaluation.evaluator import Evaluator, PendingVerdict
from hrm.evaluation.report import Setting
from hrm.evaluation.run import AGENT_ID, UNANSWERED_PER_SLOT, setting_of
from schemas import (
    HRMExample,
    MessageRejected,
    PromptMatch,
    RejectionReason,
    SQEHRMError,
    SQEMessage,
    TextCheck,
    Verdict,
)

CHANGES_PER_KIND = 2000
"""Default limit of changes of each kind. The share of wrong judgements among 2,000 places drawn is
within 2.2 percentage points of the share among all places, with a probability of 95 %."""

CACHED_PREDICTIONS = 10_000
"""Predictions that an evaluator has to keep for this test: more than the messages that are answered
but not yet changed, at any batch size. They take 6 MB."""

EXCERPT = 40
"""Characters of an excerpt in an example: about six words."""


class DriftTestError(SQEHRMError):
    """The file has no message that can be tested."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChangeExample(_Model):
    """A change that the model judges wrongly. Contains words of the message."""

    message_id: str = Field(description="The message's own id, or `line:N` with N from 1.")
    word: int = Field(description="Number of the first changed word of the completion, from 1.")
    words: int = Field(description="Number of words of the completion.")
    before: str = Field(description="Characters before the change.")
    old: str = Field(description="Characters that were replaced, shortened.")
    new: str = Field(description="Characters that replaced them, shortened.")
    after: str = Field(description="Characters after the change.")


class KindFigures(_Model):
    """All changes of one kind."""

    kind: ChangeKind
    harmless: bool = Field(description="Whether the text means the same after a change.")
    places: int = Field(description="Places for such a change in all known messages.")
    changes: int = Field(
        description="Changes that were judged, each at another place. Fewer than places if they "
        "were sampled, if some known messages raise an alarm unchanged, or if a change made "
        "another accepted answer to the same prompt, which is no drift."
    )
    model_wrong: int = Field(
        description="Changes that the model judges wrongly: solved although the text changed, or "
        "not solved although the change is harmless."
    )
    text_checked: int = Field(
        description="Changes whose text could be checked; 0 if the checkpoint has no hashes of its "
        "accepted texts."
    )
    text_wrong: int = Field(
        description="Changes that the text check judges wrongly: `same` or `normalised` although "
        "the text changed, or `different` although the change is harmless."
    )
    examples: tuple[ChangeExample, ...] = Field(
        description="Some of the changes that the model judges wrongly."
    )


class TestedLines(_Model):
    """Contents of the file. Only the messages in `tested` were changed."""

    __test__ = False  # pytest takes the name for a test's

    tested: int = Field(description="Known messages that raise no alarm unchanged.")
    alarming: int = Field(
        description="Known messages that raise an alarm unchanged: not solved, or with a text that "
        "was not accepted. To change them would show nothing."
    )
    unknown: int = Field(description="Messages whose prompt the checkpoint was not trained on.")
    unknown_by_match: dict[str, int] = Field(
        description="The same, by what the training set knows of their prompts."
    )
    converted: int = Field(description="Converted examples, which have no text to change.")
    refused: dict[RejectionReason, int] = Field(description="Refused lines, by reason.")


class DriftReport(_Model):
    """The result of a drift test."""

    format_version: Literal[1] = 1
    data: str
    setting: Setting
    seed: int
    changes_per_kind: int = Field(description="Limit of changes of each kind.")
    lines: TestedLines
    kinds: tuple[KindFigures, ...]


@dataclass(frozen=True)
class DriftOptions:
    """How much is tested, and how many examples are kept."""

    changes_per_kind: int = CHANGES_PER_KIND
    """Limit of changes of each kind. If the known messages have more places, this many are drawn,
    each place with the same probability."""
    examples: int = 0
    """Number of examples to keep of each kind, drawn from those that the model judges wrongly."""
    seed: int = 0
    """Seed of everything that is drawn."""


def drift_test(
    source: BinaryIO,
    name: str,
    evaluator: Evaluator,
    options: DriftOptions,
    *,
    reader: LineReader = DEFAULT_READER,
    on_refused: Callable[[RefusedLine], None],
    on_change: Callable[[int, int], None],
) -> DriftReport:
    """Change the completions of known messages in `source`, and count the wrong judgements.

    Args:
        source: The JSONL file of messages and bare pairs, opened at its start. It is read twice.
        name: What the report and errors call the file.
        evaluator: Makes the verdicts. A prediction depends on the prompt alone, so with a cache of
            `CACHED_PREDICTIONS` it computes each message once; without one, each change.
        options: How much is tested.
        reader: Reads and judges the lines.
        on_refused: Called with each line that cannot be evaluated.
        on_change: Called after each change with the number of changes so far and the number
            planned.

    Raises:
        DriftTestError: The checkpoint knows no message of the file.
    """
    lines = _Lines(source, evaluator, reader, on_refused)
    survey = lines.survey()
    if not lines.known:
        raise DriftTestError(_nothing_known(name, evaluator))
    tallies = [_Tally(kind, survey, options) for kind in ChangeKind]
    planned = sum(tally.wanted for tally in tallies)
    done = alarming = 0
    for message, verdict in lines.verdicts():
        if not verdict.solved or verdict.text is TextCheck.DIFFERENT:
            alarming += 1
            continue
        for tally in tallies:
            for change in tally.draw(message["completion"]):
                tally.judge(message, change, evaluator)
                done += 1
                on_change(done, planned)
    return DriftReport(
        data=name,
        setting=setting_of(evaluator),
        seed=options.seed,
        changes_per_kind=options.changes_per_kind,
        lines=lines.counted(alarming),
        kinds=tuple(tally.figures() for tally in tallies),
    )


_Message = dict[str, Any]
"""The fields of a message, in their JSON forms."""


@dataclass(frozen=True)
class _Survey:
    """The places of the known messages, and what to write there."""

    places: Counter[ChangeKind] = field(default_factory=Counter)
    replacements: Replacements = field(default_factory=Replacements)


class _Lines:
    """The lines of a file: read twice, and counted."""

    def __init__(
        self,
        source: BinaryIO,
        evaluator: Evaluator,
        reader: LineReader,
        on_refused: Callable[[RefusedLine], None],
    ) -> None:
        self.known = 0
        self._unknown: Counter[PromptMatch] = Counter()
        self._converted = 0
        self._refused: Counter[RejectionReason] = Counter()
        self._source = source
        self._evaluator = evaluator
        self._reader = reader
        self._on_refused = on_refused

    def survey(self) -> _Survey:
        """Read the file for the first time."""
        survey = _Survey()
        for index, content in self._reader.contents(self._source):
            if isinstance(content, RefusedLine):
                self._refuse(content)
            elif isinstance(content, HRMExample):
                self._converted += 1
            elif (match := self._match(content, index)) is not PromptMatch.PAIR:
                self._unknown[match] += 1
            else:
                self.known += 1
                survey.replacements.add(content.completion)
                for kind in ChangeKind:
                    survey.places[kind] += len(places(kind, content.completion))
        return survey

    def verdicts(self) -> Iterator[tuple[_Message, Verdict]]:
        """Read the file again, and evaluate the known messages as they stand."""
        ahead = self._evaluator.statistics.slots * UNANSWERED_PER_SLOT
        waiting: deque[tuple[int, _Message, PendingVerdict]] = deque()
        for index, message in self._known_messages():
            waiting.append((index, message, self._evaluator.submit(message)))
            if len(waiting) > ahead:
                yield from self._answered(*waiting.popleft())
        for line in waiting:
            yield from self._answered(*line)

    def counted(self, alarming: int) -> TestedLines:
        """The counts, if `alarming` known messages raise an alarm unchanged."""
        return TestedLines(
            tested=self.known - alarming,
            alarming=alarming,
            unknown=self._unknown.total(),
            unknown_by_match={
                match.value: self._unknown[match] for match in PromptMatch if self._unknown[match]
            },
            converted=self._converted,
            refused=dict(self._refused),
        )

    def _known_messages(self) -> Iterator[tuple[int, _Message]]:
        self._source.seek(0)
        for index, content in self._reader.contents(self._source):
            if isinstance(content, RefusedLine | HRMExample):
                continue
            if self._match(content, index) is not PromptMatch.PAIR:
                continue
            fields = content.model_dump(mode="json", exclude_none=True, exclude={"alternative"})
            # Also the policy `line_index` works: it has no line to count in a message alone.
            converter = self._evaluator.converter
            named = converter.named_puzzle(content)
            puzzle_id = converter.puzzle_id_for(content.prompt, named, index)
            envelope = {
                "schema_version": 1,
                "message_id": f"line:{index + 1}",
                "agent_id": AGENT_ID,
            }
            yield index, {**envelope, **fields, "puzzle_id": puzzle_id}

    def _answered(
        self, index: int, message: _Message, pending: PendingVerdict
    ) -> Iterator[tuple[_Message, Verdict]]:
        try:
            verdict = pending.result().verdict
        except MessageRejected as rejected:
            self.known -= 1
            self._refuse(RefusedLine.of(index, rejected))
        else:
            yield message, verdict

    def _match(self, content: SQEMessage | AcceptedPair, index: int) -> PromptMatch:
        converter = self._evaluator.converter
        example, named = converter.example_of(content, index), converter.named_puzzle(content)
        return check_message(content, example, self._evaluator.checkpoint.training, named).match

    def _refuse(self, line: RefusedLine) -> None:
        self._refused[line.reason] += 1
        self._on_refused(line)


def _nothing_known(name: str, evaluator: Evaluator) -> str:
    checkpoint = evaluator.checkpoint_name
    if evaluator.checkpoint.training is None:
        return (
            f"checkpoint {checkpoint} has no record of its training pairs, so it knows no message: "
            "test one that sqe-hrm train wrote"
        )
    return (
        f"{name}: checkpoint {checkpoint} knows no message of it: give messages that it was "
        "trained on"
    )


class _Tally:
    """Draws the changes of one kind, and counts how they are judged."""

    def __init__(self, kind: ChangeKind, survey: _Survey, options: DriftOptions) -> None:
        self._kind = kind
        self._replacements = survey.replacements
        self._max_examples = options.examples
        # Sources of their own, so that neither other kinds nor the examples alter what is drawn.
        self._source = Random(f"{options.seed}:{kind}")  # noqa: S311 - not for secrets
        self._examples_source = Random(f"{options.seed}:{kind}:examples")  # noqa: S311
        self._places = self._places_left = survey.places[kind]
        self.wanted = self._wanted_left = min(self._places, options.changes_per_kind)
        self._changes = 0
        self._model_wrong = 0
        self._text_checked = 0
        self._text_wrong = 0
        self._examples: list[ChangeExample] = []

    def draw(self, completion: str) -> Iterator[Change]:
        """Change the next completion, at each of its places that is drawn.

        Every place of all completions is drawn with the same probability (Knuth's algorithm S).
        """
        for span in places(self._kind, completion):
            drawn = self._source.random() * self._places_left < self._wanted_left
            self._places_left -= 1
            if not drawn:
                continue
            self._wanted_left -= 1
            change = change_at(span, self._kind, completion, self._replacements, self._source)
            if change is not None:
                yield change

    def judge(self, message: _Message, change: Change, evaluator: Evaluator) -> None:
        """Evaluate the message with its changed completion."""
        try:
            verdict = evaluator.submit({**message, "completion": change.text}).result().verdict
        except MessageRejected:
            return  # the change made a message of the largest size larger
        real = not self._kind.harmless and verdict.text is not TextCheck.DIFFERENT
        if real and _is_another_answer(message["prompt"], change, evaluator):
            return
        self._changes += 1
        if verdict.text is not TextCheck.UNKNOWN:
            self._text_checked += 1
            self._text_wrong += (verdict.text is TextCheck.DIFFERENT) == self._kind.harmless
        if verdict.solved != self._kind.harmless:
            self._model_wrong += 1
            self._keep(message["message_id"], change)

    def figures(self) -> KindFigures:
        """Everything that was counted."""
        return KindFigures(
            kind=self._kind,
            harmless=self._kind.harmless,
            places=self._places,
            changes=self._changes,
            model_wrong=self._model_wrong,
            text_checked=self._text_checked,
            text_wrong=self._text_wrong,
            examples=tuple(self._examples),
        )

    def _keep(self, message_id: str, change: Change) -> None:
        """Keep an example, or not: each has the same chance (Vitter's algorithm R)."""
        place = len(self._examples)
        if place == self._max_examples:
            place = self._examples_source.randrange(self._model_wrong)
        if place < self._max_examples:
            self._examples[place : place + 1] = [_example(message_id, change)]


def _is_another_answer(prompt: str, change: Change, evaluator: Evaluator) -> bool:
    """Whether the change made the completion another one that is accepted for its prompt."""
    training = evaluator.checkpoint.training
    if training is None or training.accepted is None:
        return False
    before, after = (TextHashes.of(prompt, text) for text in (change.original, change.text))
    accepted = training.accepted.texts.check(after)
    return (
        accepted in {TextCheck.SAME, TextCheck.NORMALISED}
        and after.normalised_completion != before.normalised_completion
    )


def _example(message_id: str, change: Change) -> ChangeExample:
    original = change.original
    return ChangeExample(
        message_id=message_id,
        word=change.word,
        words=len(original.split()),
        before=original[max(0, change.start - EXCERPT) : change.start],
        old=_shortened(original[change.start : change.end]),
        new=_shortened(change.new),
        after=original[change.end : change.end + EXCERPT],
    )


def _shortened(text: str) -> str:
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"
