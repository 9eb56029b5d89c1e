"""The members of an ensemble, its name, its known pairs, and its fitted combiner."""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hrm.checkpoint import Checkpoint, TrainingRecord, pair_hash
from hrm.checkpoint.pairs import AcceptedExample
from hrm.data.config import ConversionConfig, PuzzlePolicy, Task, WordHash
from hrm.data.conversion import Converter
from hrm.data.files import RefusedLine
from hrm.data.texts import AcceptedTexts, TextHashes
from hrm.ensemble.combiners import Strategy
from hrm.ensemble.ensemble import MAX_NAME_LENGTH, Ensemble
from hrm.ensemble.report import exclude_seen, fit_stacking_for, sound_examples
from hrm.ensemble.stacking import EnsembleError, Stacking, read_stacking
from hrm.evaluation.evaluator import Evaluator
from hrm.inference.config import Inference
from hrm.training.examples import training_record
from schemas import MessageRejected, RejectionReason, SQEMessage
from tests.support.checkpoints import ACCEPTED, ANSWERS, RECORD, SEVERAL, SHA256, TINY
from tests.support.ensembles import WIDER, member
from tests.support.evaluations import Run, jsonl
from tests.support.examples import example

LINES = [{"prompt": f"test {word}", "completion": "agent data"} for word in "abcde"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    folder = tmp_path_factory.mktemp("members")
    return [member(folder / "a", 1), member(folder / "b", 2, WIDER)]


def refusal(
    members: Sequence[Checkpoint],
    strategy: Strategy = Strategy.WEIGHTED_AVERAGE,
    weights: Sequence[float] | None = None,
    stacking: Stacking | None = None,
) -> str:
    """The error of making this ensemble, which is one line."""
    with pytest.raises(EnsembleError) as caught:
        Ensemble(members, strategy, weights, stacking)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fit(members: list[Checkpoint]) -> Stacking:
    examples = [example(puzzle, (0, 5, 11), (0, 3, 11)) for puzzle in range(4)]
    inference = Inference(slots=2, max_steps=2)
    return fit_stacking_for(members, None, examples, "cal", device="cpu", inference=inference)


@pytest.mark.parametrize(
    ("config", "conversion", "told"),
    [
        ({"vocab_size": 13}, {}, "a has vocab_size 12, x has 13"),
        ({"seq_len": 8}, {}, "a has seq_len 7, x has 8"),
        ({}, {"word_hash": WordHash.MD5}, "a has word_hash sha256, x has md5"),
        (
            {},
            {"puzzle_policy": PuzzlePolicy.PROMPT_HASH},
            "a has puzzle_policy line_index, x has prompt_hash",
        ),
        ({}, {"puzzle_space": 4}, "a has puzzle_space 5, x has 4"),
        ({}, {"tasks": (Task(name="t", row=5),)}, "a has tasks none, x has 1 (0ebca6fc)"),
    ],
)
def test_members_that_read_messages_differently_are_refused(
    pair: list[Checkpoint],
    config: dict[str, Any],
    conversion: dict[str, Any],
    told: str,
) -> None:
    other = replace(
        pair[1],
        name="x",
        config=pair[1].config.model_copy(update=config),
        conversion=pair[1].conversion.model_copy(update=conversion),
    )
    assert refusal([pair[0], other]) == f"{told}: an ensemble's checkpoints have to agree in it"


def test_an_ensemble_has_at_least_two_different_members(
    pair: list[Checkpoint], tmp_path: Path
) -> None:
    copy = member(tmp_path / "copy", 1)
    assert "are the same checkpoint: name it once" in refusal([pair[0], pair[1], copy])
    assert refusal(pair[:1]) == "an ensemble has at least two checkpoints: name another"


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ([1.0], "1 weights for 2 checkpoints"),
        ([1.0, 0.0], "weight 0: give a positive number"),
        ([1.0, -2.0], "weight -2: "),
        ([1.0, float("nan")], "weight nan: "),
        ([1.0, float("inf")], "weight inf: "),
        ([1e308, 1e-308], "the smallest weight is nothing"),
    ],
)
def test_weights_are_positive_and_one_each(
    pair: list[Checkpoint], weights: list[float], told: str
) -> None:
    assert refusal(pair, weights=weights).startswith(told)


def test_weights_are_scaled_to_sum_to_one(pair: list[Checkpoint]) -> None:
    assert Ensemble(pair, weights=[3, 1]).weights == (0.75, 0.25)
    assert Ensemble(pair).weights == (0.5, 0.5)
    assert Ensemble(pair, weights=[1e308, 1e308]).weights == (0.5, 0.5)


def test_name_and_digest_tell_ensembles_apart(pair: list[Checkpoint], tmp_path: Path) -> None:
    first = Ensemble(pair)
    assert first.name == "ensemble(a+b)"
    assert first.digest == Ensemble(pair, weights=[2, 2]).digest
    stacking = fit(pair)
    others = [
        Ensemble(pair, weights=[2, 1]),
        Ensemble(pair, Strategy.VOTING),
        Ensemble([pair[1], pair[0]]),
        Ensemble(pair, Strategy.STACKING, stacking=stacking),
        Ensemble(
            pair,
            Strategy.STACKING,
            stacking=stacking.model_copy(update={"bias": (1.0, *stacking.bias[1:])}),
        ),
    ]
    digests = {each.digest for each in [first, *others]}
    assert len(digests) == 6
    assert all(len(digest) == 64 for digest in digests)
    long = Ensemble([pair[0], member(tmp_path / ("long" * 30), 3)])
    assert len(long.name) == MAX_NAME_LENGTH
    assert long.name.startswith("ensemble(a+longlong")


def test_an_ensemble_takes_what_every_member_takes(pair: list[Checkpoint], tmp_path: Path) -> None:
    larger = member(tmp_path / "x", 3, TINY.model_copy(update={"num_puzzle_identifiers": 9}))
    ensemble = Ensemble([larger, pair[1]])
    assert ensemble.config.num_puzzle_identifiers == 5
    assert ensemble.config.halt_max_steps == 16
    predictor = ensemble.open(Inference(slots=1, max_steps=1), "cpu")
    with contextlib.closing(Evaluator(ensemble, predictor, device="cpu", worker="w")) as evaluator:
        body = SQEMessage.create(agent_id="a", prompt="a", completion="b", puzzle_id=5)
        with pytest.raises(
            MessageRejected, match=r"checkpoint ensemble\(x\+b\) has puzzles 0 to 4"
        ):
            evaluator.submit(body.model_dump_json())


def accepted_record(*pairs: tuple[str, str]) -> TrainingRecord:
    """The record of these prompts and completions, all of puzzle 1."""
    examples = []
    for line, pair in enumerate(pairs, 1):
        example = Converter(ConversionConfig()).convert(*pair, 1)
        hash_ = pair_hash(1, example.input_sequence)
        examples.append(AcceptedExample(line, example, hash_, TextHashes.of(*pair)))
    return training_record(examples)


def test_known_is_what_all_members_were_trained_on(tmp_path: Path) -> None:
    def record(*inputs: int) -> TrainingRecord:
        hashes = frozenset(pair_hash(1, [0, word, 11]) for word in inputs)
        return TrainingRecord(
            format_version=1, pair_hashes=hashes, target_token_counts=tuple(range(12))
        )

    members = [
        member(tmp_path / "a", 1, record=record(3, 4)),
        member(tmp_path / "b", 2, record=record(4, 5)),
    ]
    training = Ensemble(members).training
    assert training is not None
    assert training.pair_hashes == {pair_hash(1, [0, 4, 11])}
    assert training.target_token_counts == tuple(range(0, 24, 2))
    assert training.accepted is None
    assert Ensemble([*members, member(tmp_path / "c", 3)]).training is None


def test_accepted_is_what_all_members_accept(tmp_path: Path) -> None:
    first = accepted_record(("security", "one"), ("security", "one two"), ("data", "a b"))
    second = accepted_record(("security", "one"), ("data", "a b c"), ("agent", "x"))
    members = [member(tmp_path / "a", 1, record=first), member(tmp_path / "b", 2, record=second)]
    training = Ensemble(members).training
    assert training is not None
    assert training.accepted is not None
    security, data = pair_hash(1, [0, 4, 11]), pair_hash(1, [0, 3, 11])
    assert training.pair_hashes == {security, data}
    assert training.accepted.target_lengths == {security: (3,), data: ()}
    assert training.accepted.puzzles == {1}
    assert training.accepted.texts == AcceptedTexts.of([TextHashes.of("security", "one")])
    before = first.model_copy(update={"format_version": 1, "accepted": None})
    mixed = Ensemble([member(tmp_path / "c", 3, record=before), members[1]]).training
    assert mixed is not None
    assert (mixed.format_version, mixed.accepted) == (1, None)


def test_answers_in_the_same_rows_are_the_ensembles_and_in_other_rows_are_refused(
    tmp_path: Path,
) -> None:
    members = [member(tmp_path / name, seed, record=SEVERAL) for seed, name in enumerate("ab")]
    training = Ensemble(members).training
    assert training is not None
    assert training.answers == ANSWERS
    single = member(tmp_path / "single", 3, record=RECORD)
    assert Ensemble([members[0], single]).training.answers == {}  # type: ignore[union-attr]
    moved = {
        pair: {target: row - 1 for target, row in rows.items()} for pair, rows in ANSWERS.items()
    }
    accepted = ACCEPTED.model_copy(update={"answers": moved})
    other = member(tmp_path / "c", 4, record=RECORD.model_copy(update={"accepted": accepted}))
    with pytest.raises(EnsembleError) as caught:
        Ensemble([members[0], other])
    assert str(caught.value) == (
        "a and c hold the accepted answers of 1 prompts in different puzzle rows, and an ensemble "
        "asks all members with one: train them on the same file with the same puzzle space"
    )


def test_an_evaluation_names_the_ensemble(pair: list[Checkpoint]) -> None:
    ensemble = Ensemble(pair)
    predictor = ensemble.open(Inference(slots=2, max_steps=2), "cpu")
    evaluator = Evaluator(ensemble, predictor, device="cpu", worker="host:1")
    with contextlib.closing(evaluator):
        run = Run(evaluator, jsonl(*LINES))
    assert {(each.checkpoint, each.checkpoint_digest) for each in run.verdicts} == {
        (ensemble.name, ensemble.digest)
    }
    assert (run.report.setting.checkpoint, run.report.setting.dtype) == (ensemble.name, "float32")
    assert run.report.overall.act_steps.max == 2
    assert run.report.by_known is None


# The combiner of stacking.


def test_a_combiner_is_the_same_after_it_was_saved(pair: list[Checkpoint], tmp_path: Path) -> None:
    stacking = fit(pair)
    path = tmp_path / "combiner.json"
    path.write_text(stacking.model_dump_json())
    assert read_stacking(path) == stacking
    assert (stacking.examples, stacking.tokens, stacking.calibration) == (4, 12, "cal")
    assert Ensemble(pair, Strategy.STACKING, stacking=read_stacking(path)).digest == (
        Ensemble(pair, Strategy.STACKING, stacking=stacking).digest
    )


def test_a_combiner_is_for_its_own_members_in_order(pair: list[Checkpoint]) -> None:
    told = refusal([pair[1], pair[0]], Strategy.STACKING, stacking=fit(pair))
    assert told.startswith("the combiner was fitted for other checkpoints, or in another order")


def test_a_combiner_and_stacking_go_together(pair: list[Checkpoint]) -> None:
    told = "a combiner and the strategy stacking go together: give both"
    assert refusal(pair, Strategy.STACKING) == told
    assert refusal(pair, Strategy.VOTING, stacking=fit(pair)) == told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bias": [0.0] * 11}, "weight is not of the size that bias and members mean"),
        ({"members": ["a"]}, "members"),
        ({"format_version": 2}, "format_version"),
        ({"bias": [None] * 12}, "bias.0"),
    ],
)
def test_a_file_that_holds_no_combiner_is_refused(
    pair: list[Checkpoint], tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    path = tmp_path / "combiner.json"
    path.write_text(json.dumps(fit(pair).model_dump(mode="json") | change))
    with pytest.raises(EnsembleError, match="give a file that sqe-hrm ensemble wrote") as caught:
        read_stacking(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(EnsembleError, match="cannot be read: No such file"):
        read_stacking(tmp_path / "missing")


def test_examples_that_a_member_cannot_take_are_not_fitted_on(pair: list[Checkpoint]) -> None:
    inference = Inference(slots=2, max_steps=1)
    far, near = example(99, (0, 11)), example(1, (0, 11))
    stacking = fit_stacking_for(pair, None, [far, near], "cal", device="cpu", inference=inference)
    assert (stacking.examples, stacking.tokens) == (1, 2)
    with pytest.raises(EnsembleError, match="cal: no example to fit a combiner on"):
        fit_stacking_for(pair, None, [far], "cal", device="cpu", inference=inference)


def test_pairs_of_the_data_are_left_out_of_the_calibration() -> None:
    calibration = [example(1, (0, 3, 11)), example(1, (0, 4, 11)), example(2, (0, 3, 11))]
    data = [example(1, (0, 3, 11), target=(0, 9, 11)), example(3, (0, 4, 11))]
    assert exclude_seen(calibration, iter(data)) == calibration[1:]
    assert exclude_seen(calibration, iter(calibration)) == []


def test_examples_are_read_from_every_form_of_line() -> None:
    converted = example(4, (0, 3, 11))
    told: list[RefusedLine] = []
    source = jsonl(LINES[0], "no json", converted.model_dump(mode="json"))
    read = list(sound_examples(source, Converter(SHA256), on_refused=told.append))
    assert [each.puzzle_id for each in read] == [0, 4]
    assert read[1] == converted
    assert [(line.number, line.reason) for line in told] == [(2, RejectionReason.NOT_JSON)]
    assert not list(sound_examples(io.BytesIO(), Converter(SHA256), on_refused=told.append))
