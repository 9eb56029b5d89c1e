"""A message gets a verdict with every field right, or a refusal with its reason."""

import contextlib
import gc
import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from hrm.checkpoint import CheckpointError, TrainingRecord, load_checkpoint, save_checkpoint
from hrm.data.config import ConversionConfig, PuzzlePolicy
from hrm.data.conversion import Converter
from hrm.data.vocabulary import VOCABULARY_1
from hrm.evaluation.evaluator import LONGEST_KEPT, Evaluator
from hrm.evaluation.scoring import score
from hrm.inference.config import Inference
from hrm.inference.engine import Engine
from hrm.inference.prediction import (
    EngineClosedError,
    EngineFullError,
    Prediction,
    Predictor,
)
from hrm.model.batch import encode
from hrm.model.config import HRMConfig
from hrm.model.reference_loop import evaluate_batch
from schemas import (
    Category,
    Difficulty,
    HaltedBy,
    HRMExample,
    MessageRejected,
    PromptMatch,
    RejectionReason,
    SQEMessage,
    TextCheck,
    Verdict,
)
from tests.support.checkpoints import RECORD, SEVERAL, TINY, state_of
from tests.support.evaluations import opened

CONVERSION = ConversionConfig(puzzle_space=5)
MESSAGE = {
    "schema_version": 1,
    "message_id": "m-1",
    "agent_id": "a-1",
    "prompt": "security",
    "completion": "agent test",
    "puzzle_id": 3,
}
TIMEOUT = 30


def saved(
    folder: Path,
    *,
    config: HRMConfig = TINY,
    conversion: ConversionConfig = CONVERSION,
    training: TrainingRecord | None = RECORD,
) -> Path:
    save_checkpoint(folder, state_of(config), config, conversion, training)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="module")
def shared(checkpoint: Path) -> Iterator[Evaluator]:
    """An evaluator for tests that do not change it."""
    evaluator = opened(checkpoint)
    yield evaluator
    evaluator.close()


@pytest.fixture
def evaluator(checkpoint: Path) -> Iterator[Evaluator]:
    """An evaluator that the test may change."""
    evaluator = opened(checkpoint)
    yield evaluator
    evaluator.close()


def verdict_of(evaluator: Evaluator, **fields: Any) -> Verdict:  # noqa: ANN401
    return evaluator.submit({**MESSAGE, **fields}).result(TIMEOUT).verdict


def refusal(evaluator: Evaluator, body: Any) -> MessageRejected:  # noqa: ANN401
    with pytest.raises(MessageRejected) as caught:
        evaluator.submit(body)
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 300
    return caught.value


# Verdicts.


@pytest.mark.parametrize("cached", [0, 100])
def test_an_answered_message_leaves_no_cycle(checkpoint: Path, cached: int) -> None:
    """Python looks for them seldom, and they would hold messages by the ten thousand."""
    answering = opened(checkpoint, cached_predictions=cached)

    def submit(prompt: str) -> None:
        pending = answering.submit({**MESSAGE, "prompt": prompt})
        pending.add_done_callback(partial(id, pending))
        pending.result(TIMEOUT)

    gc.disable()
    try:
        submit("deployment")  # the first time, something is built that stays
        gc.collect()
        for prompt in ("security", "security data", "security test", "security"):
            submit(prompt)
        assert gc.collect() == 0
    finally:
        gc.enable()
        answering.close()


@pytest.mark.parametrize("halting", HaltedBy)
def test_a_verdict_is_what_the_plain_loop_and_the_score_say(
    checkpoint: Path, halting: HaltedBy
) -> None:
    loaded = load_checkpoint(checkpoint)
    example = Converter(CONVERSION).convert("security", "agent test", 3)
    network = Inference(slots=2).network(loaded, "cpu")
    output = evaluate_batch(network, encode([example], TINY), halting=halting, max_steps=3)
    predicted = output.predictions[0].tolist()
    baseline = RECORD.target_token_counts.index(max(RECORD.target_token_counts))
    figures = score(predicted, example.target_sequence, end=11, baseline_token=baseline)
    evaluator = opened(checkpoint, halting=halting)
    before = datetime.now(UTC)
    try:
        pending = evaluator.submit(json.dumps(MESSAGE), queued_seconds=2.5)
        verdict, confusions, completion, text_of = pending.result(TIMEOUT)
    finally:
        evaluator.close()
    assert text_of(verdict) == verdict.model_dump_json()
    q_halt, q_continue = output.q_logits[0].tolist()
    assert verdict.model_dump(exclude={"timings", "evaluated_at", "q_halt", "q_continue"}) == {
        "message_id": "m-1",
        "agent_id": "a-1",
        "checkpoint": "tiny",
        "checkpoint_digest": loaded.digest,
        "puzzle_id": 3,
        "solved": figures.solved,
        "token_accuracy": figures.token_accuracy,
        "edit_similarity": figures.edit_similarity,
        "correct_tokens": figures.correct_tokens,
        "target_tokens": 4,
        "predicted_sequence": tuple(predicted[:4]),
        "known": True,
        "match": PromptMatch.PAIR,
        "text": TextCheck.SAME,
        "truncated": False,
        "unread_words": 0,
        "act_steps": output.steps.item(),
        "halted_by": (
            HaltedBy.Q if halting is HaltedBy.Q and q_halt > q_continue else HaltedBy.MAX_STEPS
        ),
        "q_flips": output.q_flips.item(),
        "difficulty": Difficulty.EASY,
        "category": Category.PERFORMANCE_SECURITY,
        "failure_pattern": figures.failure_pattern,
        "device": "cpu",
        "dtype": "float32",
        "worker": "host:1",
    }
    assert verdict.q_halt == pytest.approx(q_halt, abs=1e-4)
    assert verdict.q_continue == pytest.approx(q_continue, abs=1e-4)
    assert before <= verdict.evaluated_at <= datetime.now(UTC)
    named = VOCABULARY_1.names
    assert confusions == {
        (named[target], named[given]): n for (target, given), n in figures.confusions.items()
    }
    assert sum(confusions.values()) == 4 - verdict.correct_tokens
    assert completion == example.target_sequence
    assert evaluator.token_names == named
    assert pending.message == SQEMessage.model_validate(MESSAGE)
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_a_message_whose_completion_is_the_prediction_is_solved(evaluator: Evaluator) -> None:
    predicted = verdict_of(evaluator).predicted_sequence
    # The tiny network's answer does not depend on the target, which need not begin with `start`.
    converter = evaluator.converter
    example = converter.convert("security", "agent test", 3)
    target = example.model_copy(update={"target_sequence": predicted})
    converter.example_of = lambda *_: target  # type: ignore[method-assign]
    verdict = verdict_of(evaluator, completion="text that was not read before")
    assert verdict.solved
    assert verdict.token_accuracy == verdict.edit_similarity == 1
    assert verdict.correct_tokens == verdict.target_tokens == 4
    assert verdict.failure_pattern is None


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({"puzzle_id": 3, "prompt": "security"}, True),
        # Another text of the same tokens is the same prompt to the network.
        ({"puzzle_id": 3, "prompt": "  Cyber-SECURITY\n"}, True),
        ({"puzzle_id": 4, "prompt": " "}, True),
        ({"puzzle_id": 2, "prompt": "security"}, False),
        ({"puzzle_id": 4, "prompt": "security"}, False),
        ({"puzzle_id": 3, "prompt": "data"}, False),
        ({"puzzle_id": 3, "prompt": "security", "completion": "other words"}, True),
    ],
)
def test_known_is_what_was_trained_on(
    shared: Evaluator, fields: dict[str, Any], *, known: bool
) -> None:
    assert verdict_of(shared, **fields).known is known


@pytest.mark.parametrize("halting", HaltedBy)
def test_a_prompt_with_several_answers_gets_the_best_of_their_rows(
    tmp_path: Path, halting: HaltedBy
) -> None:
    path = saved(tmp_path / "several", training=SEVERAL)
    loaded = load_checkpoint(path)
    network = Inference(slots=2).network(loaded, "cpu")
    asked = [Converter(CONVERSION).convert("security", "agent test", row) for row in (3, 2)]
    output = evaluate_batch(network, encode(asked, TINY), halting=halting, max_steps=3)
    predicted = [tuple(tokens[:4]) for tokens in output.predictions.tolist()]
    assert predicted[0] != predicted[1]
    evaluator = opened(path, halting=halting)
    for place, tokens in enumerate(predicted):
        # A completion of which one row has all tokens right.
        completion = " ".join(VOCABULARY_1.names[token] for token in tokens[1:-1])
        target = Converter(CONVERSION).convert("security", completion, 3).target_sequence
        right = [sum(map(eq, each, target)) for each in predicted]
        verdict = verdict_of(evaluator, completion=completion)
        assert verdict.correct_tokens == max(right)
        assert verdict.predicted_sequence == predicted[right.index(max(right))]
        assert right.index(max(right)) == place
        assert (verdict.puzzle_id, verdict.known) == (3, True)
        assert verdict.q_halt == pytest.approx(float(output.q_logits[place, 0]), abs=1e-4)
    # Another prompt is asked once.
    before = evaluator.statistics.occupied
    verdict_of(evaluator, prompt="data")
    assert evaluator.statistics.occupied - before <= 3
    evaluator.close()


def test_nothing_is_known_without_a_training_record(tmp_path: Path) -> None:
    evaluator = opened(saved(tmp_path / "bare", training=None))
    try:
        verdict = verdict_of(evaluator)
    finally:
        evaluator.close()
    assert not verdict.known
    assert (verdict.match, verdict.text) == (PromptMatch.NONE, TextCheck.UNKNOWN)


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("agent test", TextCheck.SAME),
        ("agent", TextCheck.SAME),
        (" Agent\nTEST", TextCheck.NORMALISED),
        # The same tokens as "agent test", so the model cannot tell them apart.
        ("agents tested", TextCheck.DIFFERENT),
    ],
)
def test_a_completion_is_compared_with_the_accepted_ones(
    shared: Evaluator, completion: str, text: TextCheck
) -> None:
    assert verdict_of(shared, completion=completion).text is text
    assert verdict_of(shared, prompt="agent", completion=completion).text is TextCheck.UNKNOWN


def test_a_text_that_was_read_before_has_the_same_verdict_whoever_sends_it(
    evaluator: Evaluator,
) -> None:
    own = {"message_id", "agent_id", "timings", "evaluated_at"}
    texts: list[dict[str, Any]] = [
        {},
        {"prompt": "agent test", "completion": "security"},
        {"puzzle_id": 4},
        {"completion": "security"},
        {"category": "monitoring"},
        {"prompt": "security" + " " * LONGEST_KEPT, "completion": "test"},
    ]
    first = [verdict_of(evaluator, **each) for each in texts]
    again = [verdict_of(evaluator, **each, message_id="m-2", agent_id="a-2") for each in texts]
    assert len({each.model_dump_json(exclude=own) for each in first}) == len(texts)
    for one, other in zip(first, again, strict=True):
        assert one.model_dump(exclude=own) == other.model_dump(exclude=own)
        assert (other.message_id, other.agent_id) == ("m-2", "a-2")


def test_another_prediction_of_a_text_is_judged_anew(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = evaluator.submit(MESSAGE)
    target, given = pending.example.target_sequence, pending._prediction.result(TIMEOUT)
    right = replace(given, tokens=(*target, *given.tokens[len(target) :]))
    wrong = replace(right, tokens=(right.tokens[0] + 1, *right.tokens[1:]))
    for prediction in (right, right, wrong, replace(wrong, act_steps=7), right):
        future: Future[Prediction] = Future()
        future.set_result(prediction)
        monkeypatch.setattr(evaluator._engine, "submit", lambda *_, future=future, **__: future)
        result = evaluator.submit(MESSAGE).result(TIMEOUT)
        verdict = result.verdict
        assert verdict.predicted_sequence == prediction.tokens[: len(target)]
        assert verdict.solved is (prediction is right)
        assert bool(result.confusions) is not verdict.solved
        assert verdict.act_steps == prediction.act_steps
        # A verdict that was copied is as valid as one that was made.
        assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_a_category_given_stands_and_is_guessed_otherwise(shared: Evaluator) -> None:
    assert verdict_of(shared, category="ci_cd").category is Category.CI_CD
    assert verdict_of(shared, category="other").category is Category.OTHER
    assert verdict_of(shared).category is Category.PERFORMANCE_SECURITY
    assert verdict_of(shared, prompt="Translate this poem").category is Category.OTHER


@pytest.mark.parametrize("prompt", ["security", "data", "agent test", "é"])
def test_a_puzzle_is_given_by_the_prompts_hash(shared: Evaluator, prompt: str) -> None:
    digest = hashlib.md5(prompt.encode(), usedforsecurity=False).hexdigest()
    verdict = verdict_of(shared, puzzle_id=None, prompt=prompt)
    assert verdict.puzzle_id == int(digest, 16) % 5


@pytest.mark.parametrize(
    ("completion", "difficulty"),
    [(" " * 491, Difficulty.EASY), (" " * 492, Difficulty.MEDIUM), (" " * 1492, Difficulty.HARD)],
)
def test_difficulty_is_by_characters(
    shared: Evaluator, completion: str, difficulty: Difficulty
) -> None:
    assert verdict_of(shared, completion=completion).difficulty is difficulty


def test_timings_add_up(shared: Evaluator) -> None:
    timings = verdict_of(shared).timings
    assert timings.queue is None
    assert timings.convert > 0
    assert timings.inference > 0
    assert timings.total == pytest.approx(timings.convert + timings.inference)
    queued = shared.submit(MESSAGE, queued_seconds=40.0).result(TIMEOUT).verdict.timings
    assert queued.queue == 40
    assert queued.total == pytest.approx(40 + queued.convert + queued.inference)


def test_time_stops_when_the_engine_answers_not_when_the_result_is_fetched(
    shared: Evaluator,
) -> None:
    pending = shared.submit(MESSAGE)
    first = pending.result(TIMEOUT).verdict
    assert pending.result(TIMEOUT).verdict.timings == first.timings


def test_a_result_is_timed_although_the_callbacks_come_late(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = threading.Event()
    call_back = Future._invoke_callbacks  # type: ignore[attr-defined]

    def late(future: Future[Any]) -> None:
        assert fetched.wait(TIMEOUT)
        call_back(future)

    monkeypatch.setattr(Future, "_invoke_callbacks", late)
    try:
        assert verdict_of(evaluator).timings.inference > 0
    finally:
        fetched.set()


def test_many_messages_share_the_slots(shared: Evaluator) -> None:
    pending = [shared.submit({**MESSAGE, "message_id": f"m{index}"}) for index in range(20)]
    verdicts = [waiting.result(TIMEOUT).verdict for waiting in pending]
    assert [verdict.message_id for verdict in verdicts] == [f"m{index}" for index in range(20)]
    assert len({verdict.predicted_sequence for verdict in verdicts}) == 1


def test_a_full_engine_is_waited_for(evaluator: Evaluator) -> None:
    assert isinstance(evaluator._engine, Engine)
    evaluator._engine.queue_limit = 1
    pending = []
    for index in range(20):
        pending.append(evaluator.submit({**MESSAGE, "message_id": f"m{index}"}))
        assert evaluator.statistics.waiting <= 1
    verdicts = [waiting.result(TIMEOUT).verdict for waiting in pending]
    assert [verdict.message_id for verdict in verdicts] == [f"m{index}" for index in range(20)]


def test_waiting_for_a_full_engine_ends_when_it_closes(checkpoint: Path) -> None:
    class Full:
        """A predictor that is full until it closes."""

        def __init__(self) -> None:
            self.waited_for = threading.Event()
            self.closed = threading.Event()

        def submit(self, _: HRMExample, *, urgent: bool) -> None:
            assert urgent
            if self.closed.is_set():
                raise EngineClosedError("the engine is closed")
            raise EngineFullError("full")

        def wait_for_room(self, *, urgent: bool) -> bool:
            assert urgent
            self.waited_for.set()
            return self.closed.wait(TIMEOUT)

        def close(self) -> None:
            self.closed.set()

    full = Full()
    evaluator = Evaluator(
        load_checkpoint(checkpoint), cast("Predictor", full), device="cpu", worker="host:1"
    )
    with ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(evaluator.submit, MESSAGE)
        assert full.waited_for.wait(TIMEOUT)
        evaluator.close()
        with pytest.raises(EngineClosedError):
            submitted.result(TIMEOUT)


def test_equal_messages_are_inferred_once_if_there_is_a_cache(checkpoint: Path) -> None:
    evaluator = opened(checkpoint, cached_predictions=10)
    try:
        pending = [evaluator.submit({**MESSAGE, "message_id": f"m{index}"}) for index in range(5)]
        verdicts = [waiting.result(TIMEOUT).verdict for waiting in pending]
    finally:
        evaluator.close()
    assert [verdict.message_id for verdict in verdicts] == [f"m{index}" for index in range(5)]
    assert evaluator.statistics.occupied == evaluator.max_steps == 3
    assert (evaluator.statistics.cache_hits, evaluator.statistics.cache_misses) == (4, 1)


def test_messages_of_the_tester_are_computed_anew_and_leave_the_cache_as_it_is(
    checkpoint: Path,
) -> None:
    loaded = load_checkpoint(checkpoint)
    engine = Inference(slots=2, cached_predictions=10).open(loaded, "cpu")
    evaluator = Evaluator(loaded, engine, device="cpu", worker="w", tester="tester")
    with contextlib.closing(evaluator):
        for agent in ("tester", "planner", "tester", "planner"):
            evaluator.submit({**MESSAGE, "agent_id": agent}).result(TIMEOUT)
        statistics = evaluator.statistics
    assert (statistics.cache_hits, statistics.cache_misses) == (1, 1)
    assert statistics.occupied == 3 * evaluator.max_steps


def test_an_evaluator_names_its_checkpoint_device_and_slots(
    shared: Evaluator, checkpoint: Path
) -> None:
    assert shared.checkpoint_name == "tiny"
    assert shared.checkpoint_digest == load_checkpoint(checkpoint).digest
    assert shared.device == "cpu"
    assert shared.statistics.slots == 2
    assert shared.statistics.steps > 0


# Refusals.


@pytest.mark.parametrize("puzzle_id", [5, 2**63, 10**400])
def test_a_puzzle_beyond_the_table(shared: Evaluator, puzzle_id: int) -> None:
    refused = refusal(shared, {**MESSAGE, "puzzle_id": puzzle_id})
    assert refused.reason is RejectionReason.PUZZLE_OUT_OF_RANGE
    assert "checkpoint tiny has puzzles 0 to 4" in refused.detail


@pytest.mark.parametrize("field", ["prompt", "completion"])
def test_a_text_too_long_for_a_short_network(shared: Evaluator, field: str) -> None:
    assert verdict_of(shared, **{field: "w " * 5}).target_tokens <= 7
    refused = refusal(shared, {**MESSAGE, field: "w " * 6})
    assert refused.reason is RejectionReason.TOO_LARGE
    assert "8 tokens, but the checkpoint takes 7" in refused.detail


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xff", RejectionReason.INVALID_UNICODE),
        ("oops", RejectionReason.NOT_JSON),
        ([], RejectionReason.NOT_A_MESSAGE),
        ({}, RejectionReason.MISSING_FIELD),
        ({**MESSAGE, "prompt": ""}, RejectionReason.EMPTY_TEXT),
    ],
)
def test_what_is_no_message(shared: Evaluator, body: Any, reason: RejectionReason) -> None:  # noqa: ANN401
    assert refusal(shared, body).reason is reason


def test_the_byte_limit_is_the_evaluators(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    predictor = Inference(slots=1, max_steps=1).open(loaded, "cpu")
    evaluator = Evaluator(loaded, predictor, device="cpu", worker="host:1", max_message_bytes=18)
    try:
        assert evaluator.submit(MESSAGE).result(TIMEOUT).verdict.act_steps == 1
        refused = refusal(evaluator, {**MESSAGE, "completion": "agent tests"})
    finally:
        evaluator.close()
    assert refused.reason is RejectionReason.TOO_LARGE


def test_a_message_without_puzzle_is_refused_if_puzzles_are_lines(tmp_path: Path) -> None:
    by_line = ConversionConfig(puzzle_policy=PuzzlePolicy.LINE_INDEX, puzzle_space=5)
    evaluator = opened(saved(tmp_path / "lines", conversion=by_line))
    try:
        assert verdict_of(evaluator).puzzle_id == 3
        refused = refusal(evaluator, {**MESSAGE, "puzzle_id": None})
    finally:
        evaluator.close()
    assert refused.reason is RejectionReason.MISSING_FIELD


def test_no_finite_answer_fails_that_message_alone(evaluator: Evaluator) -> None:
    assert isinstance(evaluator._engine, Engine)
    evaluator._engine.networks[0].puzzle_emb.weights[3] = torch.nan
    broken = evaluator.submit(MESSAGE)
    sound = evaluator.submit({**MESSAGE, "puzzle_id": 2})
    with pytest.raises(MessageRejected) as caught:
        broken.result(TIMEOUT)
    assert caught.value.reason is RejectionReason.EVALUATION_FAILED
    assert caught.value.detail.isprintable()
    assert sound.result(TIMEOUT).verdict.puzzle_id == 2


def test_a_closed_evaluator_takes_no_message(checkpoint: Path) -> None:
    evaluator = opened(checkpoint)
    done = evaluator.submit(MESSAGE)
    done.result(TIMEOUT)
    evaluator.close()
    with pytest.raises(EngineClosedError):
        evaluator.submit(MESSAGE)
    assert done.result(0).verdict.message_id == "m-1"


# Checkpoints it cannot use.


def test_a_puzzle_space_beyond_the_table_is_refused_at_the_start(tmp_path: Path) -> None:
    too_wide = saved(tmp_path / "wide", conversion=ConversionConfig(puzzle_space=6))
    with pytest.raises(CheckpointError, match="puzzle_space 6 exceeds its table of 5 puzzles"):
        opened(too_wide)


SHIPPED = Path(__file__).parents[4] / "checkpoints"


@pytest.mark.parametrize(
    ("halting", "max_steps", "rate"),
    [
        (HaltedBy.MAX_STEPS, None, (pytest.approx(0.9563, abs=1e-4), 1.0, 1.0)),
        (HaltedBy.Q, 16, (pytest.approx(0.9563, abs=1e-4), 1.0, 1.0)),
        (HaltedBy.MAX_STEPS, 8, None),
    ],
)
def test_the_recorded_rate_is_that_of_the_halting_rule_and_no_other_limit(
    halting: HaltedBy, max_steps: int | None, rate: object
) -> None:
    checkpoint = load_checkpoint(SHIPPED / "sqe-demo")
    inference = Inference(slots=1, halting=halting, max_steps=max_steps)
    engine = inference.open(checkpoint, "cpu")
    with contextlib.closing(Evaluator(checkpoint, engine, device="cpu", worker="w")) as evaluator:
        assert evaluator.recorded_rate == rate
        shares = evaluator.training_tokens
        assert sum(shares.values()) == pytest.approx(1)
        assert list(shares) == list(VOCABULARY_1.names)


def test_hashed_tokens_are_one_share() -> None:
    checkpoint = load_checkpoint(SHIPPED / "sqe-demo-2")
    engine = Inference(slots=1).open(checkpoint, "cpu")
    with contextlib.closing(Evaluator(checkpoint, engine, device="cpu", worker="w")) as evaluator:
        shares = evaluator.training_tokens
    assert len(shares) < 20
    assert shares["hashed"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
