"""A worker has at most 1,300 series, whatever is sent to it, and whatever else happens."""

import itertools
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from hrm.checkpoint import save_checkpoint
from hrm.data.config import ConversionConfig
from hrm.data.vocabulary import HASHED, OTHER_HASHED, vocabulary_of
from hrm.evaluation.evaluator import Evaluator
from schemas import (
    Category,
    Difficulty,
    FailurePattern,
    MessageRejected,
    PromptMatch,
    SQEMessage,
    TextCheck,
    Verdict,
)
from tests.fuzz.inputs import damaged_message
from tests.fuzz.mutation import Mutator
from tests.support.checkpoints import state_of
from tests.support.evaluations import opened
from tests.support.networks import tiny
from tests.support.stubs import (
    COMPLETION,
    DIGEST,
    Checkpoint,
    StubEvaluator,
    evaluation,
    message,
    verdict,
)
from worker.delivery.hand import Hand
from worker.process.devices import MEMORY_KINDS
from worker.telemetry.health import Readiness
from worker.telemetry.labels import Lane
from worker.telemetry.metrics import Metrics
from worker.telemetry.verdicts import Evaluation

MOST = 1300
OF_THE_FLEET = 2
"""Series that the process above several workers adds for each."""

VOCABULARY = vocabulary_of(ConversionConfig(version=2))
"""The vocabulary with the most names."""

SAMPLE = verdict(message("fail"), queued=1.0)


class Full(StubEvaluator):
    """An evaluator that has everything that a metric can show."""

    token_names = VOCABULARY.token_names
    training_tokens = dict.fromkeys(VOCABULARY.groups, 0.0)


def full_metrics(evaluator: Any) -> Metrics:  # noqa: ANN401
    metrics = Metrics()
    metrics.watch_readiness(Readiness())
    metrics.watch_hand(Hand(4).flows)
    metrics.watch_engine(
        evaluator,
        memory=lambda: dict.fromkeys(MEMORY_KINDS, 1),
        stalled_seconds=lambda: 0.0,
        cached=True,
    )
    metrics.self_tested(8, 8, passed=True)
    return metrics


def series(metrics: Metrics) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sample.labels.items()))
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def of_every_kind(checkpoint: str) -> Iterator[Evaluation]:
    """Verdicts with every value of every label, in all combinations that a metric has."""
    both = (False, True)
    fields: list[dict[str, object]] = [
        {"solved": solved, "known": known, "difficulty": difficulty, "category": category}
        for solved, known, difficulty, category in itertools.product(
            both, both, Difficulty, Category
        )
    ]
    fields += [{"solved": solved, "text": text} for solved in both for text in TextCheck]
    fields += [{"solved": solved, "match": match} for solved in both for match in PromptMatch]
    fields += [
        {"known": known, "failure_pattern": pattern} for known in both for pattern in FailurePattern
    ]
    pairs = [*itertools.permutations(VOCABULARY.groups, 2), (HASHED, OTHER_HASHED)]
    for lane in Lane:
        for each in fields:
            made = SAMPLE.model_copy(update={**each, "checkpoint": checkpoint})
            yield evaluation(made, lane, dict.fromkeys(pairs, 1))
        # Every token.
        yield Evaluation(made, lane, {}, range(VOCABULARY.size))


def test_all_combinations_of_labels_of_two_checkpoints_stay_within_the_bound() -> None:
    evaluator = Full()
    metrics = full_metrics(evaluator)
    for name in ("before", "longest-ago", "before", "serving"):
        evaluator.checkpoint = Checkpoint(name, DIGEST)
        metrics.serves(evaluator)
        for each in of_every_kind(name):
            metrics.evaluated(each)
    for name in ("before", "longest-ago", "never", "before"):  # stored late
        for each in of_every_kind(name):
            metrics.evaluated(each)
    found = series(metrics)
    checkpoints = {value for _, labels in found for label, value in labels if label == "checkpoint"}
    assert checkpoints == {"before", "serving"}
    canaries = [labels for _, labels in found if ("lane", "canary") in labels]
    assert len(canaries) == 84, "all that there are: those of the checkpoint that serves"
    assert MOST - 100 < len(found) + OF_THE_FLEET <= MOST


HOSTILE = (
    *("sqe-canary", "other", "live", "a" * 128, "-", "true", "agent{x='1'}", "é", "a\nb", "\x00"),
    *('"} 1\nsqe_hrm_made_up 1\n#', "sqe.evaluate", "..", "__name__", "le", "+Inf", ""),
)


def hostile_messages() -> Iterator[Any]:
    """Messages with every text in every field, and damaged ones."""
    sound = SQEMessage.create(agent_id="a", prompt="p", completion="c").model_dump(mode="json")
    for field in ("agent_id", "message_id", "prompt", "completion", "category", "task", "tags"):
        for text in HOSTILE:
            yield {**sound, field: {text: text} if field == "tags" else text}
    for text in HOSTILE:
        yield {**sound, "prompt": f"security {text} " * 200, "completion": f"{text} end " * 300}
    for number in range(400):
        yield damaged_message(Mutator(f"series-{number}"))


CONVERSIONS = (
    ConversionConfig(puzzle_space=5),
    ConversionConfig(version=2, hashed_tokens=30, puzzle_space=5),
)


@pytest.fixture(scope="module", params=CONVERSIONS, ids=("conversion-1", "conversion-2"))
def evaluator(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Evaluator]:  # noqa: ANN401
    conversion = request.param
    config = tiny(vocab_size=vocabulary_of(conversion).size, seq_len=100)
    folder = tmp_path_factory.mktemp("checkpoints") / f"conversion-{conversion.version}"
    save_checkpoint(folder, state_of(config), config, conversion, None)
    with closing(opened(folder, max_steps=1, slots=8)) as evaluator:
        yield evaluator


def test_no_text_of_a_message_makes_a_series(evaluator: Evaluator) -> None:
    metrics = full_metrics(evaluator)
    metrics.serves(evaluator)
    before, evaluated, refused = series(metrics), 0, 0
    for body in hostile_messages():
        try:
            made, confusions, completion, _ = evaluator.submit(body).result(60)
        except MessageRejected as rejected:
            metrics.rejected(rejected.reason)
            refused += 1
            continue
        for lane in (Lane.LIVE, Lane.BACKFILL):
            metrics.evaluated(Evaluation(made, lane, confusions, completion))
        evaluated += 1
    assert evaluated > 100
    assert refused > 100
    new = series(metrics) - before
    assert {name for name, _ in new} <= {"sqe_hrm_token_confusions_total"}
    assert {dict(labels)["predicted"] for _, labels in new} <= {OTHER_HASHED}


def test_a_hundred_thousand_agents_make_no_series() -> None:
    metrics = full_metrics(Full())
    metrics.serves(Full())
    before = series(metrics)
    categories = list(Category)
    for number in range(100_000):
        agent = f"agent-{number}"
        category = categories[number % len(categories)]
        made = Verdict.model_construct(
            **{**vars(SAMPLE), "agent_id": agent, "message_id": agent, "category": category}
        )
        metrics.evaluated(Evaluation(made, Lane.LIVE, {}, COMPLETION))
    after = series(metrics)
    assert after == before
    assert not any("agent-" in value for _, labels in after for _, value in labels)
