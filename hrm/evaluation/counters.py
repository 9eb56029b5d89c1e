"""Counts verdicts into the figures of an evaluation.

Knows verdicts and their examples; nothing of files, engines or terminals. Memory does not grow with
the number of verdicts.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from hrm.checkpoint import TrainingRecord
from hrm.data.vocabulary import OTHER_HASHED, Vocabulary
from hrm.evaluation.baselines import Baseline
from hrm.evaluation.coverage import PairCoverage
from hrm.evaluation.report import (
    BaselineFigures,
    Confusion,
    EvaluationReport,
    Figures,
    Lines,
    PositionFigures,
    PredictionFigures,
    ReliabilityBin,
    Seconds,
    Setting,
)
from hrm.evaluation.scoring import Score, score
from hrm.evaluation.statistics import (
    IntegerHistogram,
    PositiveHistogram,
    RunningStatistics,
    Share,
    ShareOf,
)
from schemas import (
    MAX_SEQUENCE_LENGTH,
    Category,
    Difficulty,
    FailurePattern,
    HaltedBy,
    HRMExample,
    PromptMatch,
    RejectionReason,
    TextCheck,
    Verdict,
)

RELIABILITY_BINS = 10
"""Number of bins, of equal width, over the probability stated by q_halt."""

NO_TOKEN = -1
"""Stands where a baseline predicts no token. It equals no token, so it is never right."""

KNOWN = "known"
"""Group of the examples that are among the checkpoint's training pairs."""

UNKNOWN = "unknown"
"""Group of the examples that are not."""

UNKNOWN_CATEGORY = "unknown"
"""Category of converted examples, which have no prompt to guess it from."""


class PredictionCounter:
    """Counts predictions, of a network or of a baseline."""

    def __init__(self) -> None:
        self.examples = 0
        self._known = 0
        self._solved = 0
        self._correct = 0
        self._targets = 0
        self._by_example = RunningStatistics()
        self._similarity = RunningStatistics()

    def add(
        self, correct: int, targets: int, edit_similarity: float, *, solved: bool, known: bool
    ) -> None:
        """Count one prediction with `correct` of `targets` tokens right."""
        self.examples += 1
        self._known += known
        self._solved += solved
        self._correct += correct
        self._targets += targets
        self._by_example.add(correct / targets)
        self._similarity.add(edit_similarity)

    def share(self, *, complete: bool) -> ShareOf:
        """How shares are stated: without interval if all examples are known, and `complete`."""
        counted = complete and self._known == self.examples
        return Share.counted if counted else Share.measured

    def figures(self, *, complete: bool) -> PredictionFigures:
        """The figures of all predictions so far.

        `complete` says that every training pair is among the evaluated examples.
        """
        share = self.share(complete=complete)
        return PredictionFigures(
            examples=self.examples,
            solved=share(self._solved, self.examples),
            correct_tokens=self._correct,
            target_tokens=self._targets,
            token_accuracy=_ratio(self._correct, self._targets),
            token_accuracy_by_example=self._by_example.summary(),
            edit_similarity=self._similarity.summary(),
        )


class FiguresCounter:
    """Counts the verdicts of a set of examples."""

    def __init__(self, max_steps: int) -> None:
        self._max_steps = max_steps
        self._predictions = PredictionCounter()
        self._steps = IntegerHistogram()
        self._steps_solved = IntegerHistogram()
        self._halted_by: Counter[HaltedBy] = Counter()
        self._q_halt = RunningStatistics()
        self._q_continue = RunningStatistics()
        self._q_flips = IntegerHistogram()
        self._q_right = 0
        self._seconds = PositiveHistogram()

    def add(self, verdict: Verdict) -> None:
        """Count one verdict."""
        self._predictions.add(
            verdict.correct_tokens,
            verdict.target_tokens,
            verdict.edit_similarity,
            solved=verdict.solved,
            known=verdict.known,
        )
        self._steps.add(verdict.act_steps)
        if verdict.solved:
            self._steps_solved.add(verdict.act_steps)
        self._halted_by[verdict.halted_by] += 1
        self._q_halt.add(verdict.q_halt)
        self._q_continue.add(verdict.q_continue)
        self._q_flips.add(verdict.q_flips)
        self._q_right += verdict.q_right
        self._seconds.add(verdict.timings.inference)

    def share(self, *, complete: bool) -> ShareOf:
        """As `PredictionCounter.share`."""
        return self._predictions.share(complete=complete)

    def figures(self, *, complete: bool) -> Figures:
        """The figures of all verdicts so far; `complete` as for `PredictionCounter.figures`."""
        share = self.share(complete=complete)
        predictions = self._predictions.figures(complete=complete)
        steps = self._steps.summary()
        return Figures(
            **dict(predictions),
            act_steps=steps,
            act_steps_solved=self._steps_solved.summary(),
            efficiency=None if steps.mean is None else steps.mean / self._max_steps,
            halted_by={rule: self._halted_by[rule] for rule in HaltedBy},
            q_halt=self._q_halt.summary(),
            q_continue=self._q_continue.summary(),
            q_flips=self._q_flips.summary(),
            flipped=predictions.examples - self._q_flips.counts[0],
            q_right=share(self._q_right, predictions.examples),
            inference_seconds=self._seconds.summary(),
        )


class ReliabilityCounter:
    """Compares the probability stated by q_halt with the share of solved examples."""

    def __init__(self) -> None:
        self._stated: list[list[float]] = [[0, 0.0, 0] for _ in range(RELIABILITY_BINS)]

    def add(self, q_halt: float, *, solved: bool) -> None:
        """Count one example."""
        # tanh, since exp overflows for a large logit of either sign.
        probability = (1 + math.tanh(q_halt / 2)) / 2
        cell = self._stated[min(int(probability * RELIABILITY_BINS), RELIABILITY_BINS - 1)]
        cell[0] += 1
        cell[1] += probability
        cell[2] += solved

    def bins(self, share: ShareOf) -> tuple[ReliabilityBin, ...]:
        """The bins, from the least to the most probable."""
        return tuple(
            ReliabilityBin(
                low=number / RELIABILITY_BINS,
                high=(number + 1) / RELIABILITY_BINS,
                examples=int(examples),
                mean_predicted=probabilities / examples if examples else None,
                solved=share(int(solved), int(examples)),
            )
            for number, (examples, probabilities, solved) in enumerate(self._stated)
        )


class TokenCounter:
    """Counts target tokens by position and by predicted token of `vocabulary`."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokens = [0] * MAX_SEQUENCE_LENGTH
        self._correct = [0] * MAX_SEQUENCE_LENGTH
        self._confusions: Counter[tuple[int, int]] = Counter()

    def add(self, target: Sequence[int], predicted: Sequence[int]) -> None:
        """Count one example; both sequences have the target's length."""
        self._confusions.update(zip(target, predicted, strict=True))
        more = [0] * (len(target) - len(self._tokens))
        self._tokens += more
        self._correct += more
        for position, (expected, given) in enumerate(zip(target, predicted, strict=True)):
            self._tokens[position] += 1
            self._correct[position] += expected == given

    def by_position(self) -> tuple[PositionFigures, ...]:
        """The figures of positions 0 to 99, and of more if there were longer targets."""
        return tuple(
            PositionFigures(
                position=position,
                tokens=tokens,
                correct=correct,
                accuracy=_ratio(correct, tokens),
            )
            for position, (tokens, correct) in enumerate(
                zip(self._tokens, self._correct, strict=True)
            )
        )

    def confusion(self) -> Confusion:
        """The counts of all pairs of target and predicted token, by their names."""
        vocabulary = self._vocabulary
        named: Counter[tuple[str, str]] = Counter()
        for pair, count in self._confusions.items():
            named[vocabulary.group_names(*pair)] += count
        predictions = (*vocabulary.groups, *((OTHER_HASHED,) if vocabulary.hashed else ()))
        return Confusion(
            tokens=vocabulary.groups,
            predictions=predictions,
            counts=tuple(
                tuple(named[target, predicted] for predicted in predictions)
                for target in vocabulary.groups
            ),
        )


class BaselineCounter:
    """Counts the results of one baseline."""

    def __init__(self, baseline: Baseline) -> None:
        self._baseline = baseline
        self._overall = PredictionCounter()
        self._by_known = {KNOWN: PredictionCounter(), UNKNOWN: PredictionCounter()}
        self._by_match = {match: PredictionCounter() for match in PromptMatch}

    def add(self, example: HRMExample, match: PromptMatch) -> None:
        """Count one example, whose prompt the training set knows by `match`."""
        known = KNOWN if match is PromptMatch.PAIR else UNKNOWN
        guesses = [
            _score(predicted, example.target_sequence)
            for predicted in self._baseline.predict(example)
        ]
        guess = max(guesses, key=lambda each: (each.solved, each.correct_tokens))
        for counter in (self._overall, self._by_known[known], self._by_match[match]):
            counter.add(
                guess.correct_tokens,
                guess.target_tokens,
                guess.edit_similarity,
                solved=guess.solved,
                known=known == KNOWN,
            )

    def figures(self, *, recorded: bool, complete: bool) -> BaselineFigures:
        """The figures of all examples so far.

        Args:
            recorded: Whether the checkpoint has a record of its training pairs; only then are known
                and unknown examples told apart.
            complete: As for `PredictionCounter.figures`.
        """
        return BaselineFigures(
            name=self._baseline.name,
            fitted_on=self._baseline.fitted_on,
            tokens=self._baseline.tokens,
            overall=self._overall.figures(complete=complete),
            by_known={
                name: counter.figures(complete=complete) for name, counter in self._by_known.items()
            }
            if recorded
            else None,
            by_match={
                str(match): counter.figures(complete=complete)
                for match, counter in self._by_match.items()
            },
        )


class EvaluationCounter:
    """Counts all figures of an evaluation.

    Args:
        max_steps: Limit of ACT steps of an example.
        vocabulary: Vocabulary of the examples.
        baselines: Guesses to count beside the predictions.
        record: The record of the checkpoint's training pairs; None without one.
    """

    def __init__(
        self,
        max_steps: int,
        vocabulary: Vocabulary,
        baselines: Sequence[Baseline],
        record: TrainingRecord | None,
    ) -> None:
        def counters(names: Sequence[str]) -> dict[str, FiguresCounter]:
            return {str(name): FiguresCounter(max_steps) for name in names}

        self._messages = 0
        self._converted = 0
        self._refused: Counter[RejectionReason] = Counter()
        self._convert_seconds = PositiveHistogram()
        self._coverage = None if record is None else PairCoverage(record)
        self._overall = FiguresCounter(max_steps)
        self._known = counters([KNOWN, UNKNOWN])
        self._matches = counters(list(PromptMatch))
        self._texts = counters(list(TextCheck))
        self._truncated = 0
        self._unread_words = 0
        self._difficulties = counters(list(Difficulty))
        self._categories = counters([*Category, UNKNOWN_CATEGORY])
        self._patterns = counters(list(FailurePattern))
        self._reliability = ReliabilityCounter()
        self._tokens = TokenCounter(vocabulary)
        self._baselines = [BaselineCounter(baseline) for baseline in baselines]

    def refuse(self, reason: RejectionReason) -> None:
        """Count a line that was not evaluated."""
        self._refused[reason] += 1

    def add(self, verdict: Verdict, example: HRMExample, *, converted: bool) -> None:
        """Count one verdict and its example; `converted` says that the example had no prompt."""
        self._messages += not converted
        self._converted += converted
        self._convert_seconds.add(verdict.timings.convert)
        if self._coverage is not None:
            self._coverage.add(example, verdict.text)
        known = KNOWN if verdict.known else UNKNOWN
        self._overall.add(verdict)
        self._known[known].add(verdict)
        self._matches[verdict.match].add(verdict)
        self._texts[verdict.text].add(verdict)
        self._truncated += bool(verdict.truncated)
        self._unread_words += verdict.unread_words or 0
        self._difficulties[verdict.difficulty].add(verdict)
        self._categories[UNKNOWN_CATEGORY if converted else verdict.category].add(verdict)
        if verdict.failure_pattern is not None:
            self._patterns[verdict.failure_pattern].add(verdict)
        self._reliability.add(verdict.q_halt, solved=verdict.solved)
        target = example.target_sequence
        self._tokens.add(target, verdict.predicted_sequence)
        for baseline in self._baselines:
            baseline.add(example, verdict.match)

    def report(self, data: str, setting: Setting, seconds: float) -> EvaluationReport:
        """Report all figures so far.

        Args:
            data: What the report calls the data.
            setting: What was run, and how.
            seconds: How long it took.
        """
        recorded = self._coverage is not None
        complete = self._coverage is not None and self._coverage.complete
        overall = self._overall.figures(complete=complete)

        def figures(counters: Mapping[str, FiguresCounter]) -> dict[str, Figures]:
            return {name: each.figures(complete=complete) for name, each in counters.items()}

        return EvaluationReport(
            data=data,
            setting=setting,
            lines=Lines(
                messages=self._messages,
                examples=self._converted,
                refused=dict(self._refused.most_common()),
            ),
            seconds=Seconds(
                total=seconds,
                per_example=_ratio(seconds, overall.examples),
                convert=self._convert_seconds.summary(),
                inference=overall.inference_seconds,
            ),
            all_pairs_counted=complete,
            overall=overall,
            by_known=figures(self._known) if recorded else None,
            by_match=figures(self._matches),
            by_text=figures(self._texts),
            truncated=self._truncated,
            unread_words=self._unread_words,
            by_difficulty=figures(self._difficulties),
            by_category=figures(self._categories),
            by_failure_pattern=figures(self._patterns),
            reliability=self._reliability.bins(self._overall.share(complete=complete)),
            by_position=self._tokens.by_position(),
            confusion=self._tokens.confusion(),
            baselines=tuple(
                baseline.figures(recorded=recorded, complete=complete)
                for baseline in self._baselines
            ),
        )


def _score(predicted: Sequence[int], target: Sequence[int]) -> Score:
    return score(
        (*predicted, *[NO_TOKEN] * (len(target) - len(predicted))),
        target,
        end=target[-1],
        baseline_token=None,
        length_accepted=len(predicted) == len(target),
    )


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None
