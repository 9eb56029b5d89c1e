"""Holds `sqe-hrm ensemble` to its words, and `sqe-hrm worker` to the options that they share."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hrm.ensemble.combiners import Strategy
from hrm.ensemble.report import EnsembleReport
from hrm.ensemble.stacking import read_stacking
from tests.support.checkpoints import RECORD, SHA256, TINY
from tests.support.commands import refusal
from tests.support.ensembles import WIDER, save_member
from tests.support.evaluations import write_jsonl
from worker.cli.commands.ensemble import command
from worker.cli.commands.worker import command as worker
from worker.cli.options import STRATEGIES

PAIRS = [
    {"prompt": "security test", "completion": "agent data test"},
    {"prompt": "deploy", "completion": "one two three"},
    {"prompt": "plan the test", "completion": "x " * 4},
]
OTHERS = [{"prompt": f"monitor {word}", "completion": "agent data"} for word in "abc"]


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    save_member(folder / "one", 1, record=RECORD)
    save_member(folder / "two", 2, WIDER, record=RECORD)
    save_member(folder / "other", 3, TINY, SHA256.model_copy(update={"puzzle_space": 4}))
    monkeypatch.setenv("SQE_CHECKPOINT_DIR", str(folder))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", *PAIRS)


def ensemble(data: Path, *options: str | Path) -> Result:
    arguments = ["--checkpoints", "one", "two", "--data-path", data, "--max-steps", "2", *options]
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def report_of(result: Result) -> EnsembleReport:
    assert result.exit_code == 0, result.output
    return EnsembleReport.model_validate_json(result.stdout)


def test_the_table_shows_the_ensemble_beside_each_member(data: Path) -> None:
    result = ensemble(data, "--weights", "3", "1")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith("ensemble(one+two) (")
    assert lines[1] == "weighted_average of 0.75 one + 0.25 two"
    rows = [line.split() for line in lines]
    header = [
        "solved",
        "95",
        "%",
        "interval",
        "tokens",
        "edit",
        "Q",
        "right",
        "steps",
        "ms",
        "each",
    ]
    assert header in rows
    table = {row[0]: row for row in rows if row and "of" in row and "to" in row}
    assert list(table) == ["one", "two", "ensemble"]
    assert table["ensemble"][1:9] == [
        "0",
        "of",
        "3",
        "0.0",
        "to",
        "56.1",
        "%",
        table["ensemble"][8],
    ]
    assert lines[-1].startswith("no recommendation: one solves 0 of 3, but cannot be told from two")
    assert "On the same messages" in lines
    for pair in (("one", "two"), ("one", "ensemble(one+two)"), ("two", "ensemble(one+two)")):
        assert [*pair[:1], "/", *pair[1:], "max_steps", "0", "0", "1"] in [row[:7] for row in rows]
    assert max(len(line) for line in lines[:-1] if str(data) not in line) <= 100


def test_the_report_holds_every_members_own_evaluation(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    result = ensemble(data, "--strategy", "voting", "--json", "--output", output)
    report = report_of(result)
    assert output.read_text() == result.stdout
    assert (report.strategy, report.weights) == (Strategy.VOTING, (0.5, 0.5))
    assert [each.setting.checkpoint for each in report.members] == ["one", "two"]
    assert report.ensemble.setting.checkpoint == "ensemble(one+two)"
    assert {each.overall.examples for each in (*report.members, report.ensemble)} == {3}
    assert report.ensemble.overall.act_steps.max == 2
    assert report.calibration is None


def test_stacking_is_fitted_on_other_pairs_saved_and_taken_again(
    data: Path, tmp_path: Path
) -> None:
    # The policy counts lines: the shared pair has to be the same line.
    calibration = write_jsonl(tmp_path / "cal.jsonl", PAIRS[0], *OTHERS)
    combiner = tmp_path / "combiner.json"
    options = ("--strategy", "stacking", "--combiner", combiner, "--json")
    fitted = report_of(ensemble(data, *options, "--calibration", calibration))
    assert fitted.calibration is not None
    assert (fitted.calibration.examples, fitted.calibration.left_out) == (3, 1)
    assert read_stacking(combiner).examples == 3
    again = report_of(ensemble(data, *options))
    assert again.calibration is not None
    assert again.calibration.left_out is None
    assert again.ensemble.setting == fitted.ensemble.setting
    assert again.ensemble.confusion == fitted.ensemble.confusion
    text = ensemble(data, *options[:-1]).stdout
    assert f"combiner fitted on 3 examples of {calibration}, in an earlier call" in text


def test_stacking_is_never_fitted_on_what_it_is_evaluated_on(data: Path, tmp_path: Path) -> None:
    calibration = write_jsonl(tmp_path / "cal.jsonl", *PAIRS)
    told = refusal(ensemble(data, "--strategy", "stacking", "--calibration", calibration))
    assert told.startswith(f"{calibration} has no pair that {data} lacks")


def test_a_refused_line_is_told_once(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", PAIRS[0], "no json")
    result = ensemble(data)
    assert result.exit_code == 0
    (told,) = result.stderr.splitlines()
    assert told.startswith(f"{data}:2: not_json: ")
    assert "1 examples evaluated, 1 refused" in result.stdout


def test_an_empty_file_has_no_figures(tmp_path: Path) -> None:
    result = ensemble(write_jsonl(tmp_path / "data.jsonl"))
    assert result.exit_code == 0
    assert result.stdout.count("no example") == 3


def test_members_that_do_not_go_together_are_refused_before_anything_runs(data: Path) -> None:
    result = CliRunner().invoke(
        command, ["--checkpoints", "one", "other", "--data-path", str(data)]
    )
    assert refusal(result).startswith("one has puzzle_space 5, other has 4")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--strategy", "stacking"], "name pairs to fit it on with --calibration"),
        (["--combiner", "x"], "are for --strategy stacking"),
        (["--output", "{data}"], "is named twice"),
        (["--strategy", "best"], "'best' is not one of"),
        (["--weights", "much"], "'much' is not a valid float"),
        (["--device", "tpu"], "give cpu, cuda or cuda:N"),
    ],
)
def test_a_wrong_call_is_refused(data: Path, options: list[str], told: str) -> None:
    result = ensemble(data, *(option.format(data=data) for option in options))
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--checkpoint", "a", "--checkpoints", "a", "b"], "give --checkpoint for one"),
        (["--weights", "1", "2"], "are for --checkpoints"),
        (["--strategy", "voting"], "are for --checkpoints"),
        (["--checkpoints", "a", "b", "--strategy", "stacking"], "go together"),
        (["--checkpoints", "a", "b", "--combiner", "x"], "go together"),
    ],
)
def test_a_worker_refuses_what_is_no_ensemble(options: list[str], told: str) -> None:
    result = CliRunner().invoke(worker, options)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())


def test_the_options_name_every_strategy() -> None:
    assert list(STRATEGIES) == [strategy.value for strategy in Strategy]
