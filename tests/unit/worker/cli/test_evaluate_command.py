"""Holds `sqe-hrm evaluate` to its words: tables, files, exit status, what goes to stderr."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hrm.checkpoint.names import CheckpointError
from hrm.evaluation.report import EvaluationReport
from schemas import Verdict
from tests.support.checkpoints import RECORD, saved
from tests.support.commands import refusal
from tests.support.evaluations import write_jsonl
from worker.cli.commands.evaluate import command

PAIRS = [
    {"prompt": "security test", "completion": "agent data test"},
    {"prompt": "deploy", "completion": "one two three"},
    {"prompt": "plan the test", "completion": "x " * 4},
]


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint folder with `tiny`, and the environment that names it."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    saved(folder / "tiny", RECORD)
    monkeypatch.setenv("SQE_CHECKPOINT_DIR", str(folder))
    monkeypatch.setenv("SQE_CHECKPOINT", "tiny")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", *PAIRS)


def evaluate(data: Path, *options: str | Path) -> Result:
    arguments = ["--data-path", data, "--max-steps", "2", *options]
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def report_of(result: Result) -> EvaluationReport:
    assert result.exit_code == 0, result.output
    return EvaluationReport.model_validate_json(result.stdout)


def test_the_tables_show_every_part_within_100_columns(data: Path) -> None:
    result = evaluate(data, "--train-data", data)
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert max(len(line) for line in lines if str(data) not in line) <= 100
    assert "3 messages and 0 converted examples evaluated, 0 refused" in lines
    assert (
        "text check: same 0, normalised 0, different 0, unknown 3; truncated 0, 0 words unread"
        in (lines)
    )
    assert "prompts: pair 0, near 0, puzzle 0, new 0, none 3" in lines
    for title in ("Result", "Beside the model", "By example", "By group", "Failure patterns"):
        assert title in lines
    for start in ("Reliability: ", "Tokens right by target position", "Confusion: "):
        assert any(line.startswith(start) for line in lines)
    assert any("the Q head sees the prompt, never the completion" in line for line in lines)
    rows = [line.split() for line in lines]
    assert ["known", "no", "example"] in rows
    assert ["medium", "no", "example"] in rows
    assert ["unknown", "3", "0.0", "%", "0.0", "to", "56.1"] in [row[:7] for row in rows]
    for name in ("commonest token", "commonest by position", "bigram", "lookup", "nearest"):
        assert any(line.strip().startswith(name) for line in lines)
    assert any(line.endswith(f", from 3 training pairs of {data}") for line in lines)


def test_the_report_is_the_same_on_stdout_and_in_its_file(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    result = evaluate(data, "--json", "--output", output, "--batch-size", "2", "--halting", "q")
    report = report_of(result)
    assert output.read_text() == result.stdout
    assert (report.data, report.overall.examples) == (str(data), 3)
    assert report.setting.model_dump(mode="json", exclude={"checkpoint_digest"}) == {
        "checkpoint": "tiny",
        "trained_max_steps": 16,
        "device": "cpu",
        "dtype": "float32",
        "batch_size": 2,
        "halting": "q",
        "max_steps": 2,
    }


def test_verdicts_are_written_one_a_line_in_order(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    report = report_of(evaluate(data, "--json", "--verdicts", path))
    verdicts = [Verdict.model_validate_json(line) for line in path.read_text().splitlines()]
    assert [verdict.message_id for verdict in verdicts] == ["line:1", "line:2", "line:3"]
    assert sum(verdict.correct_tokens for verdict in verdicts) == report.overall.correct_tokens


def test_bfloat16_is_used_and_said(data: Path) -> None:
    assert report_of(evaluate(data, "--json", "--dtype", "bfloat16")).setting.dtype == "bfloat16"


def test_float32_is_used_and_said_where_int8_does_not_fit(data: Path) -> None:
    """The checkpoint's attention heads are too small for the kernels."""
    assert report_of(evaluate(data, "--json", "--dtype", "int8")).setting.dtype == "float32"


def test_the_fastest_dtype_is_used_where_that_is_asked_for(data: Path) -> None:
    dtype = report_of(evaluate(data, "--json", "--dtype", "auto")).setting.dtype
    assert dtype in {"float32", "bfloat16"}


def test_a_table_of_the_training_pairs_solves_what_it_holds(data: Path, tmp_path: Path) -> None:
    train_data = write_jsonl(tmp_path / "train.jsonl", *PAIRS[:2])
    baselines = report_of(evaluate(data, "--train-data", train_data, "--json")).baselines
    solved = {baseline.name: baseline.overall.solved.count for baseline in baselines}
    assert solved["lookup"] == 2
    assert baselines[-2].tokens is None


def test_training_data_too_large_for_the_nearest_neighbour_is_said(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("lookup", "run"):
        monkeypatch.setattr(f"hrm.evaluation.{module}.MAX_NEIGHBOURS", 2)
    result = evaluate(data, "--train-data", data, "--json")
    assert result.stderr == (
        f"{data}: 3 different training pairs: the nearest neighbour is left out above 2, since it "
        "compares every example with each of them\n"
    )
    assert [baseline.name for baseline in report_of(result).baselines][3:] == ["lookup"]


def test_without_training_data_the_checkpoints_record_gives_the_commonest_token(data: Path) -> None:
    (baseline,) = report_of(evaluate(data, "--json")).baselines
    assert baseline.name == "commonest token"
    assert baseline.fitted_on == "the checkpoint's training targets"
    assert set(baseline.tokens or ()) == {11}


def test_a_checkpoint_without_record_says_so(data: Path, checkpoints: Path) -> None:
    saved(checkpoints / "bare", None)
    shown = evaluate(data, "--checkpoint", "bare").stdout
    assert "no record of its training pairs" in shown
    assert "name the training pairs with --train-data" in shown
    report = report_of(evaluate(data, "--checkpoint", "bare", "--json"))
    assert (report.by_known, report.baselines) == (None, ())


def test_a_file_without_messages_shows_no_percentages(tmp_path: Path) -> None:
    result = evaluate(write_jsonl(tmp_path / "empty.jsonl"))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "no example"
    assert "0 messages and 0 converted examples evaluated, 0 refused" in result.stdout
    assert "%" not in result.stdout


def test_refused_lines_are_told_by_number_and_strict_fails(tmp_path: Path, data: Path) -> None:
    data = write_jsonl(data, PAIRS[0], "oops", {"prompt": "a"})
    output = tmp_path / "report.json"
    lenient = evaluate(data)
    assert lenient.exit_code == 0
    told = [line.split(": ")[:2] for line in lenient.stderr.splitlines()]
    assert told == [[f"{data}:2", "not_json"], [f"{data}:3", "missing_field"]]
    strict = evaluate(data, "--strict", "--output", output)
    assert refusal(strict) == f"{data}: 2 refused: fix the lines named, or drop --strict"
    assert strict.exit_code == 1
    # What was measured is not thrown away.
    assert EvaluationReport.model_validate_json(output.read_text()).overall.examples == 1


@pytest.mark.parametrize("option", ["--output", "--verdicts"])
def test_nothing_that_is_read_is_overwritten(data: Path, option: str) -> None:
    before = data.read_bytes()
    result = evaluate(data, option, data)
    assert result.exit_code == 2
    assert f"{data} is named twice" in result.stderr
    assert data.read_bytes() == before


def test_two_outputs_may_not_be_one_file(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert evaluate(data, "--output", out, "--verdicts", out).exit_code == 2
    assert not out.exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--max-steps", "0"),
        ("--max-steps", "1001"),
        ("--batch-size", "0"),
        ("--halting", "never"),
        ("--device", "tpu"),
        ("--device", "cuda:0"),  # none is visible
    ],
)
def test_a_wrong_call_exits_with_2(data: Path, options: tuple[str, ...]) -> None:
    assert evaluate(data, *options).exit_code == 2


def test_users_mistakes_are_one_line(data: Path, tmp_path: Path) -> None:
    missing = evaluate(data, "--checkpoint", "nowhere")
    assert isinstance(missing.exception, CheckpointError)
    nothing = write_jsonl(tmp_path / "nothing.jsonl")
    assert refusal(evaluate(data, "--train-data", nothing)) == (
        f"{nothing} holds no training pair: name another file, or none"
    )
    unwritable = evaluate(data, "--output", tmp_path / "no" / "report.json")
    assert refusal(unwritable).startswith(f"cannot write {tmp_path / 'no' / 'report.json'}: ")


def test_help_warns_of_files_converted_otherwise() -> None:
    shown = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "if they were converted with another word hash or policy than the checkpoint's" in shown
