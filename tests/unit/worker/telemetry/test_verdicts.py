"""worker.telemetry.verdicts: what each verdict adds to which series."""

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from schemas import Category, FailurePattern, PromptMatch, TextCheck, Timings, Verdict
from tests.support.stubs import DIGEST, Checkpoint, StubEvaluator, evaluation, message, verdict
from worker.broker.keys import BACKFILL_QUEUE, LIVE_QUEUE
from worker.telemetry.families import Distribution
from worker.telemetry.labels import Lane
from worker.telemetry.verdicts import AT_ONCE, Evaluation, VerdictFigures

SOLVED, FAILED = verdict(message("solve")), verdict(message("fail"))

Labels = tuple[tuple[str, str], ...]


class Shown(VerdictFigures):
    """Figures that can be read."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        super().__init__(self.registry)

    def count(self, *evaluations: Evaluation) -> None:
        for each in evaluations:
            self.evaluated(each)

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for family in self.registry.collect():
            for sample in family.samples:
                yield sample.name.removeprefix("sqe_hrm_"), sample.labels, sample.value

    def all(self) -> dict[tuple[str, Labels], float]:
        return {(name, tuple(labels.items())): value for name, labels, value in self.samples()}

    def counts(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """The sums of a metric by some of its labels; nothing for 0."""
        sums: dict[tuple[str, ...], float] = {}
        for sample, of, value in self.samples():
            if sample == name and value:
                key = tuple(of[label] for label in labels)
                sums[key] = sums.get(key, 0) + value
        return sums


@pytest.fixture
def figures() -> Shown:
    shown = Shown()
    shown.serves(StubEvaluator())
    return shown


def of(made: Verdict, **fields: object) -> Evaluation:
    return evaluation(made.model_copy(update=fields))


def test_every_series_is_at_0_before_the_first_message(figures: Shown) -> None:
    before = figures.all()
    assert set(before.values()) == {0}
    for lane in (Lane.LIVE, Lane.BACKFILL):
        figures.count(
            evaluation(SOLVED, lane),
            evaluation(FAILED, lane, {("test", "agent"): 1}),
            evaluation(verdict(message("fail"), queued=1.0), lane),
        )
    assert figures.all().keys() == before.keys()


def test_evaluations_are_counted_by_lane_and_a_canary_nowhere_else(figures: Shown) -> None:
    figures.count(evaluation(FAILED), evaluation(FAILED), evaluation(SOLVED, Lane.BACKFILL))
    before = figures.all()
    figures.count(evaluation(FAILED, Lane.CANARY, {("test", "agent"): 1}))
    added = {key for key, value in figures.all().items() if before.get(key) != value}
    assert [name for name, _ in added] == ["evaluations_total"]
    labels = ("checkpoint", "lane", "outcome", "known", "difficulty", "category")
    assert figures.counts("evaluations_total", *labels) == {
        ("stub", "live", "unsolved", "true", "easy", "other"): 2,
        ("stub", "backfill", "solved", "true", "easy", "other"): 1,
        ("stub", "canary", "unsolved", "true", "easy", "other"): 1,
    }


def test_failures_are_told_apart_by_lane_prompt_and_pattern(figures: Shown) -> None:
    shifted = of(FAILED, known=False, failure_pattern=FailurePattern.SHIFTED)
    figures.count(of(FAILED), of(FAILED), shifted, evaluation(FAILED, Lane.BACKFILL))
    assert figures.counts("failures_total", "checkpoint", "lane", "known", "pattern") == {
        ("stub", "live", "true", "near_miss"): 2,
        ("stub", "live", "false", "shifted"): 1,
        ("stub", "backfill", "true", "near_miss"): 1,
    }


def test_texts_are_counted_by_what_the_model_said_of_them(figures: Shown) -> None:
    changed = of(SOLVED, text=TextCheck.DIFFERENT, truncated=True, unread_words=7)
    converted = of(SOLVED, text=TextCheck.UNKNOWN, truncated=None, unread_words=None)
    figures.count(of(SOLVED), changed, changed, converted, of(FAILED))
    assert figures.counts("text_checks_total", "lane", "text", "solved") == {
        ("live", "same", "true"): 1,
        ("live", "different", "true"): 2,
        ("live", "different", "false"): 1,
        ("live", "unknown", "true"): 1,
    }
    assert figures.counts("truncated_total", "lane") == {("live",): 2}
    assert figures.counts("unread_words_total", "lane") == {("live",): 14}


def test_prompts_are_counted_by_how_training_knows_them(figures: Shown) -> None:
    matches = (PromptMatch.PUZZLE, PromptMatch.PUZZLE, PromptMatch.NEW)
    figures.count(*(of(SOLVED, match=match) for match in matches), of(FAILED))
    assert figures.counts("prompt_matches_total", "match", "solved") == {
        ("puzzle", "true"): 2,
        ("new", "true"): 1,
        ("pair", "false"): 1,
    }


def test_q_halt_is_right_when_its_sign_is_the_outcome(figures: Shown) -> None:
    figures.count(of(SOLVED), of(FAILED))  # both have q_halt 1
    assert figures.counts("q_halt_correct_total", "lane") == {("live",): 1}


@pytest.mark.parametrize(("logit", "chance"), [(0.0, 0.5), (-2000.0, 0.0), (2000.0, 1.0)])
def test_what_the_q_head_states_of_live_messages_is_a_chance(
    figures: Shown, logit: float, chance: float
) -> None:
    backfill = evaluation(FAILED, Lane.BACKFILL)
    figures.count(of(FAILED, q_halt=logit), of(SOLVED, q_halt=100.0), backfill)
    outcomes = {("solved",): 1.0, ("unsolved",): 1.0}
    assert figures.counts("q_halt_probability_count", "outcome") == outcomes
    sums = figures.counts("q_halt_probability_sum", "outcome")
    assert sums.get(("unsolved",), 0.0) == chance


def test_times_are_by_queue_and_what_is_unknown_is_not_observed(figures: Shown) -> None:
    timed = of(SOLVED, timings=Timings(queue=2.0, convert=0.25, inference=0.5, total=2.75))
    figures.count(of(SOLVED), timed, evaluation(SOLVED, Lane.BACKFILL))
    both = {(LIVE_QUEUE,): 2, (BACKFILL_QUEUE,): 1}
    assert figures.counts("inference_seconds_count", "queue") == both
    for name, seconds in (("queue_seconds", 2.0), ("end_to_end_seconds", 2.75)):
        assert figures.counts(f"{name}_count", "queue") == {(LIVE_QUEUE,): 1}
        assert figures.counts(f"{name}_sum", "queue") == {(LIVE_QUEUE,): seconds}
    assert figures.counts("convert_seconds_count") == {(): 3}


def test_values_share_a_bucket_up_to_its_limit() -> None:
    registry = CollectorRegistry()
    steps = Distribution("steps", "Steps.", buckets=(1, 2, 4), registry=registry)
    steps.observe_all([1, 2, 2, 3, 5])
    steps.observe_all([4])
    samples = [each for family in registry.collect() for each in family.samples]
    assert {each.labels.get("le", each.name): each.value for each in samples} == {
        "1.0": 1,
        "2.0": 3,
        "4.0": 5,
        "+Inf": 6,
        "steps_count": 6,
        "steps_sum": 17,
    }


def test_tokens_of_live_completions_and_confusions_of_known_ones_are_counted(
    figures: Shown,
) -> None:
    confused = {("test", "agent"): 2}
    unknown = verdict(message("fail")).model_copy(update={"known": False})
    figures.count(
        evaluation(FAILED, Lane.LIVE, confused),
        evaluation(unknown, Lane.LIVE, confused),
        evaluation(FAILED, Lane.BACKFILL, confused),
    )
    assert figures.counts("token_confusions_total", "target", "predicted") == {("test", "agent"): 2}
    assert figures.counts("tokens_total", "checkpoint", "token") == {
        ("stub", token): 2 for token in ("start", "test", "agent", "end")
    }


def test_hashed_tokens_are_counted_together() -> None:
    class Hashing(StubEvaluator):
        token_names = ("start", "test", "agent", *9 * ("hashed",))

    figures = Shown()
    figures.serves(Hashing())
    figures.count(Evaluation(SOLVED, Lane.LIVE, {}, (0, 5, 7, 7, 1)))
    counts = {("start",): 1, ("hashed",): 3, ("test",): 1}
    assert figures.counts("tokens_total", "token") == counts


@pytest.mark.parametrize("tokens", [(0, 11, 12, 255), (0, 11, 12, 1023)])
def test_a_checkpoint_may_be_trained_anew_with_fewer_tokens(
    figures: Shown, tokens: tuple[int, ...]
) -> None:
    figures.count(Evaluation(SOLVED, Lane.LIVE, {}, tokens))  # stored late
    assert figures.counts("tokens_total", "token") == {("start",): 1, ("end",): 1}


def test_the_checkpoint_that_serves_is_shown_and_the_one_before() -> None:
    figures = Shown()

    def shown() -> set[str]:
        return {
            labels["checkpoint"] for _, labels, _ in figures.samples() if "checkpoint" in labels
        }

    def serve(name: str) -> None:
        figures.serves(StubEvaluator(checkpoint=Checkpoint(name, DIGEST)))

    def evaluate(name: str, lane: Lane = Lane.LIVE) -> None:
        answered = verdict(message(), checkpoint=Checkpoint(name, DIGEST))
        figures.count(evaluation(answered, lane))

    for name in ("aa", "ab", "ac"):
        serve(name)
        evaluate(name)
        evaluate(name, Lane.CANARY)
    assert shown() == {"ab", "ac"}
    serve("ac")  # trained anew
    serve("ab")
    assert shown() == {"ab", "ac"}
    evaluate("aa")  # stored late
    assert shown() == {"aa", "ab"}
    evaluate("aa", Lane.CANARY)
    canaries = [labels for _, labels, _ in figures.samples() if labels.get("lane") == "canary"]
    assert not canaries, "only those of the checkpoint that serves"


def test_many_verdicts_are_counted_without_a_reader(figures: Shown) -> None:
    for _ in range(AT_ONCE + 1):
        figures.evaluated(evaluation(SOLVED))
    assert len(figures._gathered) == 1
    assert sum(figures.counts("evaluations_total", "lane").values()) == AT_ONCE + 1
    assert not figures._gathered


def test_a_category_of_each_message_is_counted(figures: Shown) -> None:
    figures.count(*(of(SOLVED, category=category) for category in Category))
    assert figures.counts("evaluations_total", "category") == {(each,): 1 for each in Category}
