"""A checkpoint is recommended for what it solved, and only if the data can tell."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hrm.checkpoint import Checkpoint, TrainingRecord, load_checkpoint, pair_hash, save_checkpoint
from hrm.data.config import ConversionConfig
from hrm.data.conversion import AcceptedPair, Converter
from hrm.evaluation import recommendation
from hrm.evaluation.measurement import measure
from hrm.evaluation.recommendation import (
    CheckpointFigures,
    ComparisonError,
    labels_of,
    measure_messages,
    recommend,
)
from hrm.evaluation.statistics import Share
from hrm.model.batch import encode
from hrm.model.config import HRMConfig
from schemas import HaltedBy
from tests.support.checkpoints import SHA256, state_of
from tests.support.checkpoints import TINY as SLOW

TINY = SLOW.model_copy(update={"halt_max_steps": 3})
RULES = (HaltedBy.MAX_STEPS, HaltedBy.Q)
PAIRS = [AcceptedPair(prompt=f"test {i} now", completion=f"data {i}") for i in range(5)]

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
    expected = measure(checkpoint.build(), encode(examples, TINY), HaltedBy.MAX_STEPS)
    monkeypatch.setattr(recommendation, "MEASURE_BATCH", 2)
    (found,) = measure_messages([checkpoint], enumerate(PAIRS), [HaltedBy.MAX_STEPS])
    assert found.solved == Share.measured(expected.solved, 5)
    assert found.token_accuracy == pytest.approx(expected.token_accuracy)
    assert found.q_accuracy == pytest.approx(expected.q_accuracy)
    assert found.mean_act_steps == pytest.approx(expected.mean_act_steps)


def test_every_checkpoint_is_measured_under_every_rule(save: Save) -> None:
    found = measure_messages([save("a"), save("b")], enumerate(PAIRS), RULES)
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
    found = measure_messages(checkpoints, enumerate(PAIRS), [HaltedBy.Q])
    assert [figures.known for figures in found] == [1, 0]


def test_a_converted_example_is_taken_unchanged(save: Save) -> None:
    examples = [Converter(SHA256).convert("a", "b", puzzle, None) for puzzle in range(3)]
    (found,) = measure_messages([save("a")], enumerate(examples), [HaltedBy.Q])
    assert found.solved.of == 3


def test_a_message_that_one_checkpoint_cannot_take_is_named(save: Save) -> None:
    pair = AcceptedPair(prompt="a", completion="b", puzzle_id=5)
    with pytest.raises(ComparisonError) as caught:
        measure_messages([save("a")], [(0, PAIRS[0]), (7, pair)], RULES)
    assert str(caught.value).startswith("line 8 does not fit checkpoint a: puzzle_id 5, but ")


def test_without_a_message_nothing_is_measured(save: Save) -> None:
    assert measure_messages([save("a")], [], RULES) == []


def test_checkpoints_of_one_name_are_told_apart_by_path(save: Save) -> None:
    checkpoints = [save("x/step"), save("y/step")]
    assert labels_of(checkpoints) == [str(checkpoint.path) for checkpoint in checkpoints]
    assert labels_of([checkpoints[0], save("z")]) == ["step", "z"]
    with pytest.raises(ComparisonError, match=r"safetensors is named twice: name each .* once"):
        labels_of([checkpoints[0], checkpoints[0]])


# Recommendations.


def measured(rule: HaltedBy, of: int, **solved: int) -> list[CheckpointFigures]:
    return [
        CheckpointFigures(
            checkpoint=name,
            halting=rule,
            solved=Share.measured(count, of),
            known=0,
            token_accuracy=0.5,
            q_accuracy=0.5,
            mean_act_steps=1,
        )
        for name, count in solved.items()
    ]


def test_the_checkpoint_whose_interval_lies_above_all_others_is_recommended() -> None:
    (found,) = recommend(measured(HaltedBy.Q, 100, a=50, b=90, c=60))
    assert (found.halting, found.recommended, found.candidates) == (HaltedBy.Q, "b", ("b",))
    assert found.reason.startswith("take b: the 95 % interval of its solve rate lies above")


def test_overlapping_intervals_cannot_be_told_apart() -> None:
    # 70 of 100 reaches from 60.4 to 78.1 %, 75 of 100 from 65.7 %, and 10 ends at 17.4 %.
    (found,) = recommend(measured(HaltedBy.Q, 100, a=70, b=75, c=10))
    assert found.recommended is None
    assert found.candidates == ("b", "a")
    assert found.reason == (
        "no recommendation: the 95 % intervals of b and a overlap, "
        "so this data cannot tell them apart"
    )


def test_more_messages_tell_the_same_rates_apart() -> None:
    (found,) = recommend(measured(HaltedBy.Q, 10_000, a=7_000, b=7_500))
    assert found.recommended == "b"


def test_each_rule_has_its_own_recommendation() -> None:
    figures = measured(HaltedBy.MAX_STEPS, 50, a=50, b=0) + measured(HaltedBy.Q, 50, a=0, b=0)
    found = recommend(figures)
    assert [(one.halting, one.recommended) for one in found] == [
        (HaltedBy.MAX_STEPS, "a"),
        (HaltedBy.Q, None),
    ]


def test_nothing_measured_is_no_recommendation() -> None:
    (found,) = recommend([])
    assert (found.halting, found.recommended) == (None, None)
    assert "weights alone do not tell" in found.reason
