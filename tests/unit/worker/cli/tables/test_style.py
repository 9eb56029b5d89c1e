"""Numbers are written in one way, in every table: nothing is rounded to all or to none."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hrm.checkpoint.inspection import inspect_checkpoint
from hrm.data.analysis import DatasetStatistics, TextStatistics
from hrm.data.conversion import Converter
from hrm.data.vocabulary import VOCABULARY_1
from hrm.ensemble.combiners import Strategy
from hrm.ensemble.report import EnsembleReport
from hrm.evaluation.baselines import commonest
from hrm.evaluation.comparison import compare_checkpoints
from hrm.evaluation.counters import EvaluationCounter
from hrm.evaluation.measurement import BothRules, RuleFigures
from hrm.evaluation.recommendation import CheckpointFigures, Measurements
from hrm.evaluation.report import EvaluationReport, Setting
from hrm.evaluation.statistics import Share
from hrm.training.fit import Measurement
from schemas import Difficulty, FailurePattern, HaltedBy
from tests.support.checkpoints import RECORD, SHA256
from tests.support.ensembles import member
from tests.support.stubs import message, verdict
from worker.cli.tables.analysis import print_statistics
from worker.cli.tables.checkpoint import print_comparison, print_inspection
from worker.cli.tables.ensemble import print_ensemble
from worker.cli.tables.evaluation import print_report
from worker.cli.tables.style import (
    interval,
    number,
    percent,
    print_parts,
    signed_percent,
    table,
)
from worker.cli.tables.training import summary

MANY, ALL = 2499, 2500
"""99.96 %, which one decimal rounds to 100.0, and of which it rounds the rest to 0.0."""

EXAMPLE = Converter(SHA256).convert("p", "test agent", 1)
"""Its target is 0, 1, 2, 11."""


@pytest.mark.parametrize(
    ("share", "digits", "shown"),
    [
        (0.0, 1, "0.0 %"),
        (1.0, 1, "100.0 %"),
        (MANY / ALL, 1, "99.9 %"),
        (1 / ALL, 1, "0.1 %"),
        (1e-12, 1, "0.1 %"),
        (1 - 1e-12, 1, "99.9 %"),
        (0.0005, 1, "0.1 %"),
        (0.9994, 1, "99.9 %"),
        (0.5, 1, "50.0 %"),
        (MANY / ALL, 2, "99.96 %"),
        (0.999999, 2, "99.99 %"),
        (0.999, 0, "99 %"),
        (0.001, 0, "1 %"),
        (1.0, 0, "100 %"),
        (1.101, 1, "110.1 %"),
        (1.0001, 1, "100.1 %"),
        (None, 1, "-"),
    ],
)
def test_a_percentage_is_0_or_100_only_if_it_is_exactly_that(
    share: float | None, digits: int, shown: str
) -> None:
    assert percent(share, digits) == shown


@pytest.mark.parametrize(
    ("percentage", "shown"),
    [
        (0.0, "+0.0 %"),
        (-0.0, "+0.0 %"),
        (0.04, "+0.1 %"),
        (-0.04, "-0.1 %"),
        (-18.64, "-18.6 %"),
        (-99.96, "-99.9 %"),
        (-100.0, "-100.0 %"),
        (100.04, "+100.1 %"),
    ],
)
def test_a_change_keeps_its_sign(percentage: float, shown: str) -> None:
    assert signed_percent(percentage) == shown


@pytest.mark.parametrize(
    ("count", "of", "shown"),
    [
        (84, 84, "95.6 to 100.0 %"),
        (0, 84, "0.0 to 4.4 %"),
        (100_000, 100_001, "99.9 to 99.9 %"),
        (1, 100_000, "0.1 to 0.1 %"),
        (0, 0, "-"),
    ],
)
def test_the_ends_of_an_interval_are_percentages(count: int, of: int, shown: str) -> None:
    assert interval(Share.measured(count, of)) == shown


def test_what_was_counted_whole_has_no_interval() -> None:
    assert interval(Share.counted(84, 84)) == "all counted"
    assert interval(Share.counted(0, 0)) == "-"


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (None, 3, "-"),
        (0.0, 3, "0"),
        (1.0, 3, "1.00"),
        (0.2984, 3, "0.298"),
        (99.96, 3, "100"),
        (931.5, 3, "932"),
        (12345.6, 3, "12,346"),
        (-257.4, 3, "-257"),
        (0.99976, 4, "0.9998"),
        (15.54, 4, "15.54"),
    ],
)
def test_a_number_has_its_significant_digits(value: float | None, digits: int, shown: str) -> None:
    assert number(value, digits) == shown


def test_parts_are_set_apart_and_a_path_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    made = table("name", "count", "text", left=(0, 2), gap=2)
    made.add_row("a", "1", "b")
    print_parts(("/".join(["folder"] * 30), made), ("", "second"))
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "/".join(["folder"] * 30),
        "name  count  text",
        "─────────────────",
        "a         1  b",
        "",
        "second",
    ]


# Every table.


def evaluation(**wrong: float | bool) -> EvaluationReport:
    """2,500 examples, of which one is not solved (and has `wrong` in its verdict)."""
    right = verdict(message("solve")).model_copy(update={"act_steps": 16, "q_halt": 9.0})
    baseline = commonest((0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), "training targets")
    counter = EvaluationCounter(16, VOCABULARY_1, [baseline], RECORD)
    for _ in range(MANY):
        counter.add(right, EXAMPLE, converted=False)
    one = {
        "solved": False,
        "correct_tokens": 3,
        "token_accuracy": 0.75,
        "predicted_sequence": (0, 1, 3, 11),
        "failure_pattern": FailurePattern.NEAR_MISS,
        "act_steps": 15,
    }
    counter.add(right.model_copy(update=one | wrong), EXAMPLE, converted=False)
    setting = Setting(
        checkpoint="tiny",
        checkpoint_digest="0" * 64,
        trained_max_steps=16,
        device="cpu",
        dtype="float32",
        batch_size=1,
        halting=HaltedBy.MAX_STEPS,
        max_steps=16,
    )
    return counter.report("data", setting, 1.0)


def print_evaluation(_: Path) -> None:
    print_report(evaluation())


def print_two_members(_: Path) -> None:
    report = evaluation()
    print_ensemble(
        EnsembleReport(
            strategy=Strategy.VOTING,
            weights=(0.5, 0.5),
            calibration=None,
            members=(report, report),
            ensemble=report,
            repeated_lines=0,
            pairs=(),
            recommendation=None,
        )
    )


def print_two_checkpoints(folder: Path) -> None:
    first, second = member(folder / "first", 1), member(folder / "second", 2)
    measured = CheckpointFigures(
        checkpoint="first",
        halting=HaltedBy.Q,
        solved=Share.measured(MANY, ALL),
        known=0,
        solved_by_match={},
        token_accuracy=MANY / ALL,
        q_accuracy=MANY / ALL,
        mean_act_steps=1.5,
    )
    comparison = compare_checkpoints(
        [first, second], Measurements(figures=(measured,)), data="data"
    )
    (step,) = comparison.steps
    moved = {
        key: change.model_copy(
            update={"moved": MANY / ALL, "magnitude_percent": -0.04, "spread_percent": 99.96}
        )
        for key, change in step.tensors.items()
    }
    all_weights = {"moved": MANY / ALL, "magnitude_percent": 0.04, "spread_percent": -99.96}
    step = step.model_copy(update={"tensors": moved, **all_weights})
    print_comparison(comparison.model_copy(update={"steps": (step,)}))


def print_analysis(_: Path) -> None:
    text = TextStatistics(
        mean_characters=1.0,
        mean_tokens=1.0,
        token_counts=(MANY, 1, *(0,) * 10),
        cut=0,
        full=0,
        parts=MANY,
    )
    print_statistics(
        Path("data"),
        DatasetStatistics(
            messages=ALL,
            examples=0,
            refused={},
            inputs=text,
            targets=text,
            difficulties={Difficulty.EASY: MANY, Difficulty.HARD: 1},
            categories={},
            tasks={},
            found_tasks=(),
        ),
        VOCABULARY_1,
    )


def print_measurement(_: Path) -> None:
    figures = RuleFigures(ALL, MANY, MANY / ALL, MANY / ALL, 1.5)
    both = BothRules(figures, figures)
    print(summary(Measurement(1, both, both), ALL))  # noqa: T201


@pytest.mark.parametrize(
    ("show", "nearly", "exact"),
    [
        # Exact are its one failure, the range of a reliability bin, and a baseline that solves
        # none.
        (print_evaluation, 10, 4),
        (print_two_members, 9, 0),
        (print_two_checkpoints, 8, 0),
        # Ten tokens occur on neither side.
        (print_analysis, 3, 20),
        (print_measurement, 10, 0),
    ],
)
def test_no_table_rounds_nearly_all_to_all_or_nearly_none_to_none(
    show: Callable[[Path], None],
    nearly: int,
    exact: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    show(tmp_path)
    shown = capsys.readouterr().out
    found = re.findall(r"\b(\d+(?:\.\d+)?) %", shown)
    assert len([each for each in found if each.startswith("99")]) >= nearly, shown
    assert len([each for each in found if float(each) in {0.0, 100.0}]) == exact, shown


def test_a_measurement_has_an_interval_for_held_out_examples_only() -> None:
    both = BothRules(*[RuleFigures(84, 84, 1.0, 1.0, 1.5)] * 2)
    training, held_out = summary(Measurement(1, both, both), 84).split("  |  held out  ")
    assert training.startswith("max_steps: 84/84 solved, tokens")
    assert held_out.startswith("max_steps: 84/84 solved (96 to 100 %), tokens")
    # Unless they are a sample themselves.
    sample = summary(Measurement(1, both), 500)
    assert sample.startswith("max_steps: 84/84 solved (96 to 100 %), tokens")


def test_a_q_head_is_not_called_right_while_nothing_is_solved() -> None:
    none, one = (RuleFigures(84, solved, 0.2, 1.0, 1.5) for solved in (0, 1))
    line = summary(Measurement(1, BothRules(none, one)), 84)
    assert line.count("Q right") == 2
    assert "max_steps: 0/84 solved, tokens 20.0 %, Q right -, " in line
    assert "q: 1/84 solved, tokens 20.0 %, Q right 100.0 %, " in line


def test_the_share_of_a_component_is_never_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_inspection(inspect_checkpoint(member(tmp_path / "tiny", 1)))
    assert "0.0 %" not in capsys.readouterr().out.partition("Configuration")[0]
