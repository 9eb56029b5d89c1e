"""A message in several parts gets one verdict, in which every part counts."""

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from hrm.checkpoint import load_checkpoint, save_checkpoint
from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from hrm.evaluation.measurement import measure, measure_each
from hrm.inference.config import Inference
from hrm.inference.prediction import InferenceError, Prediction, joined
from hrm.model.batch import Messages, encode_messages
from hrm.model.network import HRM
from hrm.model.reference_loop import evaluate_batch
from schemas import HaltedBy, HRMExample
from tests.support.checkpoints import state_of
from tests.support.evaluations import opened
from tests.support.networks import tiny

CONVERSION = ConversionConfig(version=2, hashed_tokens=30, puzzle_space=5)
CONFIG = tiny(vocab_size=43, seq_len=100)
CONVERTER = Converter(CONVERSION)
TEXTS = ("short", " ".join(f"w{number}" for number in range(230)), "data " * 99, "last one")
"""Completions of one part, three parts, two and one."""
TIMEOUT = 60


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "parts"
    save_checkpoint(folder, state_of(CONFIG), CONFIG, CONVERSION, None)
    return folder


def encoded(texts: tuple[str, ...] = TEXTS) -> Messages:
    parts = [CONVERTER.parts(CONVERTER.convert(f"prompt {text[:9]}", text)) for text in texts]
    return encode_messages(parts, CONFIG)


@pytest.mark.parametrize("halting", HaltedBy)
@pytest.mark.parametrize("cached", [False, True])
def test_a_verdict_is_what_the_plain_loop_says_of_all_parts(
    checkpoint: Path, halting: HaltedBy, *, cached: bool
) -> None:
    network = Inference(slots=2).network(load_checkpoint(checkpoint), "cpu")
    evaluator = opened(checkpoint, halting=halting, **({"cached_predictions": 9} if cached else {}))
    try:
        for text in TEXTS:
            messages = encoded((text,))
            output = evaluate_batch(network, messages.parts, halting=halting, max_steps=3)
            target = messages.parts.labels[messages.parts.labels >= 0]
            predicted = output.predictions[messages.parts.labels >= 0]
            body = {"schema_version": 1, "message_id": "m", "agent_id": "a"}
            body |= {"prompt": f"prompt {text[:9]}", "completion": text}
            verdict, confusions, completion, _ = evaluator.submit(json.dumps(body)).result(TIMEOUT)
            assert verdict.predicted_sequence == tuple(predicted.tolist())
            assert verdict.target_tokens == len(target)
            assert verdict.correct_tokens == int((predicted == target).sum())
            assert verdict.act_steps == int(output.steps.max())
            assert verdict.q_halt == pytest.approx(float(output.q_logits[:, 0].min()), abs=1e-4)
            assert verdict.q_flips == int(output.q_flips.max())
            assert (verdict.unread_words, verdict.truncated) == (0, False)
            assert sum(confusions.values()) == len(target) - verdict.correct_tokens
            assert ("hashed", "hashed") not in confusions
            assert list(completion) == target.tolist()
    finally:
        evaluator.close()


def test_one_wrong_word_in_the_last_part_is_a_near_miss(checkpoint: Path) -> None:
    evaluator = opened(checkpoint)
    try:
        example = CONVERTER.convert("the prompt", TEXTS[1])
        parts = CONVERTER.parts(example)
        answers = [evaluator._engine.submit(part).result(TIMEOUT).tokens for part in parts]
        predicted = tuple(token for tokens in answers for token in tokens)[:232]
        for changed, solved in (
            (predicted, True),
            ((*predicted[:-1], (predicted[-1] + 1) % 43), False),
        ):
            own = example.model_copy(update={"target_sequence": changed})
            evaluator.converter.example_of = lambda *_, own=own: own  # type: ignore[method-assign]
            body = {"schema_version": 1, "message_id": "m", "agent_id": "a"}
            # Another text each time, since what was read before is not read again.
            message = {**body, "prompt": "the prompt", "completion": f"is {solved}"}
            verdict = evaluator.submit(message).result(TIMEOUT).verdict
            assert verdict.solved is solved
            assert verdict.failure_pattern == (None if solved else "near_miss")
    finally:
        evaluator.close()


@pytest.mark.parametrize("urgent", [True, False])
def test_every_part_is_as_urgent_as_its_message(checkpoint: Path, *, urgent: bool) -> None:
    evaluator = opened(checkpoint)
    submitted: list[bool] = []
    submit = evaluator._engine.submit

    def note(example: HRMExample, **options: Any) -> Future[Prediction]:  # noqa: ANN401
        submitted.append(options["urgent"])
        return submit(example, **options)

    evaluator._engine.submit = note  # type: ignore[method-assign]
    body = {"schema_version": 1, "message_id": "m", "agent_id": "a", "prompt": "the prompt"}
    try:
        pending = evaluator.submit({**body, "completion": TEXTS[1]}, urgent=urgent)
        assert pending.result(TIMEOUT).verdict.target_tokens > 200
    finally:
        evaluator.close()
    assert submitted == [urgent] * 3


# The prediction of several parts.


def prediction(token: int, q_halt: float, steps: int = 1, flips: int = 0) -> Prediction:
    halted = HaltedBy.MAX_STEPS if steps == 16 else HaltedBy.Q
    return Prediction((token,) * 100, steps, halted, q_halt, -q_halt, flips)


def test_a_prediction_of_parts_is_as_sure_and_as_quick_as_the_worst() -> None:
    futures: list[Future[Prediction]] = [Future() for _ in range(3)]
    together = joined(futures)
    futures[2].set_result(prediction(3, 2.0, steps=16))
    futures[0].set_result(prediction(1, 5.0, flips=2))
    assert not together.done()
    futures[1].set_result(prediction(2, -1.0, steps=4))
    assert together.result(TIMEOUT) == Prediction(
        (1,) * 100 + (2,) * 100 + (3,) * 100, 16, HaltedBy.MAX_STEPS, -1.0, 1.0, 2
    )


def test_a_failed_part_fails_the_prediction_when_all_are_done() -> None:
    futures: list[Future[Prediction]] = [Future() for _ in range(2)]
    together = joined(futures)
    futures[0].set_exception(InferenceError("not finite"))
    assert not together.done()
    futures[1].set_result(prediction(2, -1.0))
    with pytest.raises(InferenceError, match="not finite"):
        together.result(TIMEOUT)


def test_a_single_part_is_the_prediction_itself() -> None:
    future: Future[Prediction] = Future()
    assert joined([future]) is future


# Measurements.


@pytest.mark.parametrize("at_once", [2, 100])
@pytest.mark.parametrize("halting", HaltedBy)
def test_messages_are_measured_and_not_their_parts(
    monkeypatch: pytest.MonkeyPatch, at_once: int, halting: HaltedBy
) -> None:
    monkeypatch.setattr("hrm.evaluation.measurement.MEASURE_BATCH", at_once)
    torch.manual_seed(0)
    network, messages = HRM(CONFIG).eval(), encoded()
    assert len(messages) == 4
    assert messages.message.tolist() == [0, 1, 1, 1, 2, 2, 3]
    # Take the network's own answers as targets, but for one token of the second message.
    output = evaluate_batch(network, messages.parts, halting=halting)
    counted = messages.parts.labels >= 0
    messages.parts.labels[counted] = output.predictions[counted]
    messages.parts.labels[2, 5] += 1
    found = measure_each(network, messages, halting)
    assert found.correctness.solved.tolist() == [True, False, True, True]
    assert found.correctness.targets.tolist() == [3, 232, 101, 4]
    assert found.correctness.correct.tolist() == [3, 231, 101, 4]
    assert found.act_steps.tolist() == [
        int(output.steps[messages.message == number].max()) for number in range(4)
    ]
    sure = [bool((output.q_logits[messages.message == n, 0] >= 0).all()) for n in range(4)]
    assert found.q_right.tolist() == [
        a == b for a, b in zip(sure, [True, False, True, True], strict=True)
    ]
    accepted = torch.tensor([True, True, False, True])
    shorter = measure_each(network, messages, halting, accepted)
    assert shorter.correctness.solved.tolist() == [True, False, False, True]
    assert measure(network, messages, halting).solved == 3
