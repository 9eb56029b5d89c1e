"""A checkpoint is recommended for what it solved, and only if the data can tell."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hrm.checkpoint import Checkpoint, TrainingRecord, load_checkpoint, pair_hash, save_checkpoint
from hrm.data.config import ConversionConfig
from hrm.data.conversion import AcceptedPair, Converter
from hrm.data.vocabulary import VOCABULARY_1
from hrm.evaluation import recommendation
from hrm.evaluation.measurement import measure, measure_each
from hrm.evaluation.outcomes import (
    DistinctExamples,
    Outcomes,
    PairedFigures,
    compare_outcomes,
)
from hrm.evaluation.recommendation import (
    ComparisonError,
    Measurements,
    labels_of,
    measure_messages,
    recommend,
)
from hrm.evaluation.statistics import Share
from hrm.model.batch import Messages, encode
from hrm.model.config import HRMConfig
from schemas import HaltedBy
from tests.support.checkpoints import RECORD, SEVERAL, SHA256, state_of
from tests.support.checkpoints import TINY as SLOW

TINY = SLOW.model_copy(update={"halt_max_steps": 3})
RULES = (HaltedBy.MAX_STEPS, HaltedBy.Q)
PAIRS = [AcceptedPair(prompt=f"test {i} now", completion=f"data {i}") for i in range(5)]
LINES = list(enumerate(PAIRS))

Save = Callable[..., Checkpoint]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def saved(
        name: str,
        config: HRMConfig = TINY,
        conversion: ConversionConfig = SHA256,
        record: TrainingRecord | None = None,
    ) -> Checkpoint:
        save_checkpoint(tmp_path / name, state_of(config), config, conversion, record)
        return load_checkpoint(tmp_path / name)

    return saved


# Measurements.


def test_figures_are_those_of_one_measurement_of_all_messages(
    save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save("a")
    converter = Converter(SHA256)
    examples = [converter.convert(p.prompt, p.completion, None, i) for i, p in enumerate(PAIRS)]
    expected = measure(
        checkpoint.build(), Messages.whole(encode(examples, TINY)), HaltedBy.MAX_STEPS
    )
    monkeypatch.setattr(recommendation, "MEASURE_BATCH", 2)
    (found,) = measure_messages([checkpoint], enumerate(PAIRS), [HaltedBy.MAX_STEPS]).figures
    assert found.solved == Share.measured(expected.solved, 5)
    # All targets have the same length, so the mean over examples is that over tokens.
    assert found.token_accuracy == pytest.approx(expected.token_accuracy)
    assert found.q_accuracy == pytest.approx(expected.q_accuracy)
    assert found.mean_act_steps == pytest.approx(expected.mean_act_steps)


def test_every_checkpoint_is_measured_under_every_rule(save: Save) -> None:
    found = measure_messages([save("a"), save("b")], enumerate(PAIRS), RULES).figures
    assert [(figures.checkpoint, figures.halting) for figures in found] == [
        ("a", HaltedBy.MAX_STEPS),
        ("b", HaltedBy.MAX_STEPS),
        ("a", HaltedBy.Q),
        ("b", HaltedBy.Q),
    ]


def test_each_checkpoint_converts_as_it_was_trained_and_knows_its_own_pairs(save: Save) -> None:
    known = Converter(SHA256).convert(PAIRS[2].prompt, PAIRS[2].completion, None, 2)
    record = TrainingRecord(
        format_version=1,
        pair_hashes=frozenset({pair_hash(known.puzzle_id, known.input_sequence)}),
        target_token_counts=(0,) * 12,
    )
    other = ConversionConfig(puzzle_space=5)
    checkpoints = [save("same", record=record), save("other", conversion=other, record=record)]
    found = measure_messages(checkpoints, enumerate(PAIRS), [HaltedBy.Q]).figures
    assert [figures.known for figures in found] == [1, 0]


def test_a_prompt_with_several_answers_counts_with_the_best_of_their_rows(
    save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recommendation, "MEASURE_BATCH", 3)
    converter = Converter(SHA256)
    # With every word, whatever the two rows predict.
    words = VOCABULARY_1.names[1:-1]
    pairs = [
        AcceptedPair(prompt="security", completion=f"{one} {other}", puzzle_id=3)
        for one in words
        for other in words
    ]
    single, several = save("single", record=RECORD), save("several", record=SEVERAL)
    found = measure_messages([several], enumerate(pairs), [HaltedBy.Q]).figures[0]
    right = [
        measure_each(
            single.build(),
            Messages.whole(
                encode([converter.convert(p.prompt, p.completion, row) for p in pairs], TINY)
            ),
            HaltedBy.Q,
        ).correctness
        for row in (3, 2)
    ]
    best = sum(torch.maximum(*(each.correct for each in right)).tolist())
    assert best > int(right[0].correct.sum())
    assert found.token_accuracy == best / int(right[0].targets.sum())


def test_a_converted_example_is_taken_unchanged(save: Save) -> None:
    examples = [Converter(SHA256).convert("a", "b", puzzle, None) for puzzle in range(3)]
    (found,) = measure_messages([save("a")], enumerate(examples), [HaltedBy.Q]).figures
    assert found.solved.of == 3


def test_a_message_that_one_checkpoint_cannot_take_is_named(save: Save) -> None:
    pair = AcceptedPair(prompt="a", completion="b", puzzle_id=5)
    with pytest.raises(ComparisonError) as caught:
        measure_messages([save("a")], [(0, PAIRS[0]), (7, pair)], RULES)
    assert str(caught.value).startswith("line 8 does not fit checkpoint a: puzzle_id 5, but ")


def test_without_a_message_nothing_is_measured(save: Save) -> None:
    assert measure_messages([save("a")], [], RULES) == Measurements()


def test_checkpoints_of_one_name_are_told_apart_by_path(save: Save) -> None:
    checkpoints = [save("x/step"), save("y/step")]
    assert labels_of(checkpoints) == [str(checkpoint.path) for checkpoint in checkpoints]
    assert labels_of([checkpoints[0], save("z")]) == ["step", "z"]
    with pytest.raises(ComparisonError, match=r"safetensors is named twice: name each .* once"):
        labels_of([checkpoints[0], checkpoints[0]])


def test_equal_messages_are_measured_once_and_counted_as_repeats(save: Save) -> None:
    checkpoints = [save("a"), save("b")]
    # The policy counts lines; an own puzzle makes the example the same on every line.
    pairs = [
        AcceptedPair(prompt="test " * i, completion=f"data {i}", puzzle_id=1) for i in range(1, 6)
    ]
    once = measure_messages(checkpoints, enumerate(pairs), [HaltedBy.Q])
    five_times = measure_messages(checkpoints, enumerate(pairs * 5), [HaltedBy.Q])
    assert (once.repeats, five_times.repeats) == (0, 20)
    assert five_times.model_copy(update={"repeats": 0}) == once


def test_a_message_that_one_checkpoint_reads_differently_is_no_repeat(save: Save) -> None:
    by_prompt = ConversionConfig(puzzle_space=5)
    lines = [(0, PAIRS[0]), (1, PAIRS[0])]
    found = measure_messages([save("a", conversion=by_prompt)], lines, [HaltedBy.Q])
    assert (found.repeats, found.figures[0].solved.of) == (1, 1)
    found = measure_messages([save("b", conversion=by_prompt), save("c")], lines, [HaltedBy.Q])
    assert (found.repeats, found.figures[0].solved.of) == (0, 2)


def test_shares_of_all_training_pairs_have_no_interval(save: Save) -> None:
    examples = [Converter(SHA256).convert(p.prompt, p.completion, None, i) for i, p in LINES]
    hashes = frozenset(pair_hash(each.puzzle_id, each.input_sequence) for each in examples)
    record = TrainingRecord(
        format_version=1, pair_hashes=hashes, target_token_counts=RECORD.target_token_counts
    )
    trained = [save("a", record=record), save("b", record=record)]
    found = measure_messages(trained, LINES, [HaltedBy.Q])
    assert [figures.solved.low for figures in found.figures] == [None, None]
    assert (found.pairs[0].token_low, found.pairs[0].token_high) == (None, None)
    part = measure_messages(trained, LINES[:3], [HaltedBy.Q])
    assert part.figures[0].solved.low == 0.0
    assert part.pairs[0].token_low is not None


# Recommendations.


def paired(rule: HaltedBy, **solved: str) -> list[PairedFigures]:
    """Comparisons of checkpoints; a 1 stands for each example that a checkpoint solves."""
    length = len(next(iter(solved.values())))
    examples = DistinctExamples()
    for number in range(length):
        examples.position([Converter(SHA256).convert("p", "c", number)], f"line:{number + 1}")
    outcomes = [Outcomes(name) for name in solved]
    for each, row in zip(outcomes, solved.values(), strict=True):
        for position, mark in enumerate(row):
            each.add(position, solved=mark == "1", correct=2 + int(mark), targets=3)
    return compare_outcomes(outcomes, examples, rule)


def row(solved: int, unsolved: int) -> str:
    return "1" * solved + "0" * unsolved


def test_the_checkpoint_that_solves_significantly_more_is_recommended() -> None:
    # Its interval, 87.9 to 91.7 %, overlaps that of the other, 84.8 to 88.9 %.
    (found,) = recommend(paired(HaltedBy.Q, a=row(870, 130), b=row(900, 100)))
    assert (found.halting, found.recommended, found.candidates) == (HaltedBy.Q, "b", ("b",))
    assert found.reason == (
        "take b: it solves 900 of 1,000, significantly more than "
        "a (870; 30 only b, 0 only a, p = 1.9e-09)"
    )


def test_only_examples_that_one_of_two_solves_tell_them_apart() -> None:
    a = row(860, 100) + "1" * 40
    b = row(860, 100) + "0" * 40
    b = b[:860] + "1" * 10 + b[870:]
    (found,) = recommend(paired(HaltedBy.Q, a=a, b=b))
    assert found.recommended == "a"
    assert "900 of 1,000, significantly more than b (870; 40 only a, 10 only b, p = 2.4e-05)" in (
        found.reason
    )


def test_those_that_cannot_be_told_from_the_best_are_named() -> None:
    (found,) = recommend(
        paired(HaltedBy.Q, a=row(70, 30), b="01" + row(73, 25), c=row(10, 90), d=row(72, 28))
    )
    assert found.recommended is None
    assert found.candidates == ("b", "a", "d")
    assert found.reason == (
        "no recommendation: b solves 74 of 100, but cannot be told from "
        "a (70; 5 only b, 1 only a, p = 0.66) or d (72; 3 only b, 1 only d, p = 1)"
    )


def test_the_best_has_to_beat_each_other_after_correction_for_all_pairs() -> None:
    # Six against none is 0.031; among three pairs it needs to be below 0.05 / 3 or follow such.
    six = {"a": row(20, 10), "b": row(14, 16)}
    assert recommend(paired(HaltedBy.Q, **six))[0].recommended == "a"
    three = {**six, "c": row(14, 16)}
    (found,) = recommend(paired(HaltedBy.Q, **three))
    assert found.candidates == ("a", "b", "c")


def test_equally_good_checkpoints_are_no_recommendation() -> None:
    (found,) = recommend(paired(HaltedBy.Q, a=row(0, 9), b=row(0, 9)))
    assert (found.recommended, found.candidates) == (None, ("a", "b"))


def test_each_rule_has_its_own_recommendation() -> None:
    figures = paired(HaltedBy.MAX_STEPS, a=row(50, 0), b=row(0, 50)) + paired(
        HaltedBy.Q, a=row(0, 50), b=row(0, 50)
    )
    found = recommend(figures)
    assert [(one.halting, one.recommended) for one in found] == [
        (HaltedBy.MAX_STEPS, "a"),
        (HaltedBy.Q, None),
    ]


def test_a_p_value_too_small_for_a_number_is_written_as_a_bound() -> None:
    (found,) = recommend(paired(HaltedBy.Q, a=row(1200, 0), b=row(0, 1200)))
    assert found.reason.endswith("b (0; 1,200 only a, 0 only b, p < 1e-300)")


def test_nothing_measured_is_no_recommendation() -> None:
    (found,) = recommend([])
    assert (found.halting, found.recommended) == (None, None)
    assert "weights alone do not tell" in found.reason
