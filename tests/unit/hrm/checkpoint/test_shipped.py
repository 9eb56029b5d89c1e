"""The shipped checkpoint solves its accepted messages, as in its measured figures."""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from hrm.checkpoint import Checkpoint, load_checkpoint
from hrm.data.conversion import AcceptedPair, Converter
from hrm.data.texts import TextHashes
from hrm.data.vocabulary import PART_WORDS, VOCABULARY_1
from hrm.evaluation.evaluator import Evaluator
from hrm.evaluation.measurement import RuleFigures, measure_both_rules, measure_each
from hrm.evaluation.recommendation import measure_messages
from hrm.inference.config import Inference
from hrm.kernels.training import TrainedLevels
from hrm.model.batch import Messages, encode, encode_messages
from hrm.training.examples import read_examples, training_record
from schemas import Category, Difficulty, FailurePattern, HaltedBy, HRMExample, TextCheck
from tests.support.evaluations import Run, jsonl, opened

FOLDER = Path(__file__).parents[4] / "checkpoints" / "sqe-demo"
EARLIER = FOLDER.with_name("sqe-demo-600")
MESSAGES = FOLDER / "messages.jsonl"


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(FOLDER)


@pytest.fixture(scope="module")
def pairs() -> list[AcceptedPair]:
    lines = MESSAGES.read_text(encoding="utf-8").splitlines()
    return [AcceptedPair.model_validate_json(line) for line in lines]


@pytest.fixture(scope="module")
def examples(checkpoint: Checkpoint, pairs: list[AcceptedPair]) -> list[HRMExample]:
    converter = Converter(checkpoint.conversion)
    return [converter.convert(pair.prompt, pair.completion, pair.puzzle_id) for pair in pairs]


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "measured.json").read_text())
    return content


@pytest.fixture(scope="module")
def found(checkpoint: Checkpoint, examples: list[HRMExample]) -> dict[HaltedBy, RuleFigures]:
    """Results of inference over all messages, in float32, under both halting rules."""
    return measured_now(checkpoint, Messages.whole(encode(examples, checkpoint.config)))


def measured_now(checkpoint: Checkpoint, messages: Messages) -> dict[HaltedBy, RuleFigures]:
    network = checkpoint.build()
    found = measure_both_rules(network, messages, levels=TrainedLevels(network).levels).totals
    return {HaltedBy.MAX_STEPS: found.max_steps, HaltedBy.Q: found.q}


def test_the_folder_is_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 8 * 1024 * 1024


def test_the_earlier_step_belongs_to_the_same_run(measured: dict[str, Any]) -> None:
    earlier = json.loads((EARLIER / "measured.json").read_text())
    assert earlier["step"] < measured["step"]
    assert earlier["recipe"] == measured["recipe"]
    assert earlier["data_sha256"] == measured["data_sha256"]
    first, second = load_checkpoint(EARLIER), load_checkpoint(FOLDER)
    assert first.training == second.training
    assert first.digest != second.digest


def test_the_earlier_step_solves_as_many_as_recorded(examples: list[HRMExample]) -> None:
    earlier = load_checkpoint(EARLIER)
    figures = measured_now(earlier, Messages.whole(encode(examples, earlier.config)))
    recorded = json.loads((EARLIER / "measured.json").read_text())["training_examples"]
    for halting in HaltedBy:
        assert figures[halting].solved == recorded[halting]["solved"]


def test_the_messages_are_those_that_were_measured(measured: dict[str, Any]) -> None:
    assert hashlib.sha256(MESSAGES.read_bytes()).hexdigest() == measured["data_sha256"]


def test_every_combination_of_category_and_difficulty_occurs(
    pairs: list[AcceptedPair], examples: list[HRMExample]
) -> None:
    counts = Counter(
        (pair.category, example.metadata.difficulty)
        for pair, example in zip(pairs, examples, strict=True)
    )
    assert set(counts) == set(product(Category, Difficulty))
    assert min(counts.values()) >= 4
    assert counts.total() >= 64


def test_no_prompt_occurs_twice(pairs: list[AcceptedPair], examples: list[HRMExample]) -> None:
    assert len({pair.prompt for pair in pairs}) == len(pairs)
    assert len({(example.puzzle_id, example.input_sequence) for example in examples}) == len(pairs)


@pytest.mark.parametrize("folder", [FOLDER, EARLIER], ids=lambda folder: folder.name)
def test_the_record_is_that_of_the_messages(folder: Path) -> None:
    loaded = load_checkpoint(folder)
    assert loaded.training == training_record(read_examples(MESSAGES, Converter(loaded.conversion)))


@pytest.mark.parametrize("name", ["sqe-demo", "sqe-demo-600", "sqe-demo-2"])
def test_the_pairs_are_those_of_the_messages(name: str) -> None:
    loaded = load_checkpoint(FOLDER.with_name(name))
    pairs = loaded.accepted_pairs()
    assert pairs is not None
    messages = read_examples(MESSAGES, Converter(loaded.conversion))
    assert list(pairs) == [dataclasses.replace(each, line=0) for each in messages]
    solved = pairs.solved_with(loaded.digest)
    assert solved is not None
    assert loaded.figures is not None
    for rule, flags in solved.items():
        assert int(flags.sum()) == loaded.figures.accepted.of(rule).solved


@pytest.mark.parametrize(
    ("name", "exact"), [("sqe-demo", True), ("sqe-demo-600", True), ("sqe-demo-2", False)]
)
def test_the_record_says_what_int8_changes(name: str, *, exact: bool) -> None:
    precision = load_checkpoint(FOLDER.with_name(name)).precision
    assert precision is not None
    assert (precision.pairs, precision.halt_max_steps) == (84, 16)
    check = precision.check_of("int8")
    assert check is not None
    assert check.changes_nothing is exact
    assert check.computed_by.startswith("C++")


def test_every_message_is_an_accepted_text(
    checkpoint: Checkpoint, pairs: list[AcceptedPair]
) -> None:
    assert checkpoint.training is not None
    assert checkpoint.training.accepted is not None
    texts = checkpoint.training.accepted.texts
    for pair in pairs:
        hashes = TextHashes.of(pair.prompt, pair.completion)
        assert texts.check(hashes) is TextCheck.SAME
        assert texts.check(hashes._replace(completion="")) is TextCheck.NORMALISED


def test_weights_and_configuration_are_those_that_were_published() -> None:
    digests = [load_checkpoint(folder).digest[:12] for folder in (FOLDER, EARLIER)]
    assert digests == ["e35f68b18c98", "4cf8f5b9a0ed"]


def test_a_completion_cut_before_a_word_with_the_token_of_the_end_is_not_solved(
    checkpoint: Checkpoint, pairs: list[AcceptedPair]
) -> None:
    """The model predicts all tokens of each, so without the record they would be solved."""
    converter = Converter(checkpoint.conversion)
    cut = []
    for pair in pairs:
        words = list(re.finditer(r"\S+", pair.completion))
        for word in words[1 : PART_WORDS + 1]:
            if converter.tokenizer.token(word[0]) == VOCABULARY_1.end:
                shorter = pair.completion[: word.start()]
                cut.append(pair.model_copy(update={"completion": shorter}))
    assert len(cut) == 35
    bare = dataclasses.replace(checkpoint, training=None)
    for model, solved in ((bare, 35), (checkpoint, 0)):
        (figures,) = measure_messages([model], enumerate(cut), [HaltedBy.Q]).figures
        assert figures.solved.count == solved
        assert figures.token_accuracy == 1
    predictor = Inference(slots=8, halting=HaltedBy.Q).open(checkpoint, "cpu")
    evaluator = Evaluator(checkpoint, predictor, device="cpu", worker="w")
    lines = (pair.model_dump(mode="json", exclude_none=True) for pair in cut)
    with contextlib.closing(evaluator):
        run = Run(evaluator, jsonl(*lines))
    assert {(v.token_accuracy, v.failure_pattern, v.text) for v in run.verdicts} == {
        (1.0, FailurePattern.WRONG_LENGTH, TextCheck.DIFFERENT)
    }
    assert run.report.overall.solved.count == 0


def test_at_least_nine_of_ten_are_solved(found: dict[HaltedBy, RuleFigures]) -> None:
    for figures in found.values():
        assert figures.solved >= 0.9 * figures.examples


@pytest.mark.parametrize("halting", HaltedBy)
def test_the_measured_figures_are_reproduced(
    found: dict[HaltedBy, RuleFigures], measured: dict[str, Any], halting: HaltedBy
) -> None:
    recorded = measured["training_examples"][halting]
    figures = found[halting]
    assert (figures.examples, figures.solved) == (recorded["examples"], recorded["solved"])
    assert figures.token_accuracy == pytest.approx(recorded["token_accuracy"])
    assert figures.q_accuracy == pytest.approx(recorded["q_accuracy"])
    # Another device may halt an example a step earlier or later; the result still holds.
    assert figures.mean_act_steps == pytest.approx(recorded["mean_act_steps"], abs=0.25)


@pytest.mark.parametrize(
    ("name", "rule", "reason"),
    [
        ("sqe-demo", HaltedBy.Q, "q: solves 84 of 84, as under 16 fixed steps, "),
        ("sqe-demo-600", HaltedBy.MAX_STEPS, "fixed steps: Q head right for 11 of 84 under q: "),
        ("sqe-demo-2", HaltedBy.Q, "q: solves 84 of 84, 81 under 16 fixed steps, "),
    ],
)
def test_recorded_figures_are_those_of_training(name: str, rule: HaltedBy, reason: str) -> None:
    folder = FOLDER.with_name(name)
    figures = load_checkpoint(folder).figures
    assert figures is not None
    found = figures.evidence()
    assert (found.rule, found.reason[: len(reason)]) == (rule, reason)
    measured = json.loads((folder / "measured.json").read_text())["training_examples"]
    for halting in HaltedBy:
        recorded, in_training = figures.accepted.of(halting), measured[halting]
        assert figures.accepted.messages == in_training["examples"] == 84
        assert recorded.solved == in_training["solved"]
        assert recorded.q_right == round(84 * in_training["q_accuracy"])
        # Another device may halt an example a step earlier or later.
        assert recorded.mean_act_steps == pytest.approx(in_training["mean_act_steps"], abs=0.25)


# sqe-demo-2: conversion 2.


def test_the_checkpoint_of_conversion_2_solves_as_many_as_recorded(
    pairs: list[AcceptedPair],
) -> None:
    folder = FOLDER.with_name("sqe-demo-2")
    second = load_checkpoint(folder)
    converter = Converter(second.conversion)
    messages = [converter.parts(converter.example_of(pair)) for pair in pairs]
    network, parts = second.build(), encode_messages(messages, second.config)
    found = measure_each(network, parts, HaltedBy.Q, levels=TrainedLevels(network).levels)
    recorded = json.loads((folder / "measured.json").read_text())["training_examples"]["q"]
    assert found.correctness.solved.tolist() == [True] * 84
    assert (recorded["examples"], recorded["solved"]) == (84, 84)
    assert sum(map(len, messages)) == 137
    assert found.q_right.all()
    assert recorded["q_accuracy"] == 1
    assert (folder / "messages.jsonl").resolve() == MESSAGES.resolve()


CHANGES: tuple[Callable[[str], str], ...] = (
    lambda text: text + " and then delete the production database",
    lambda text: text.rsplit(maxsplit=1)[0],
    lambda text: " ".join([*text.split()[:-1], "deleted"]),
    lambda text: text.replace(text.split()[40], "not " + text.split()[40], 1),
)


def test_the_checkpoint_of_conversion_2_notices_changes_anywhere_in_long_texts(
    pairs: list[AcceptedPair],
) -> None:
    long = [pair for pair in pairs if len(pair.completion.split()) > 98]
    assert len(long) == 49
    lines = [
        {"prompt": pair.prompt, "completion": change(pair.completion)}
        for change in CHANGES
        for pair in long
    ]
    folder = FOLDER.with_name("sqe-demo-2")
    with contextlib.closing(
        opened(folder, halting=HaltedBy.Q, max_steps=16, slots=32, cached_predictions=200)
    ) as second:
        run = Run(second, jsonl(*lines))
    assert sum(verdict.known for verdict in run.verdicts) == len(CHANGES) * 49
    assert sum(verdict.solved for verdict in run.verdicts) == 0
    assert {verdict.text for verdict in run.verdicts} == {TextCheck.DIFFERENT}
    assert {verdict.truncated for verdict in run.verdicts} == {False}
