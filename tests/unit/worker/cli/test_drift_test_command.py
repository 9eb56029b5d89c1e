"""Holds `sqe-hrm drift-test` to its words: tables, examples, files, errors in one line."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hrm.data.changes import ChangeKind
from hrm.evaluation.drift import DriftReport, DriftTestError
from tests.support.checkpoints import RECORD, saved
from tests.support.commands import refusal
from tests.support.evaluations import write_jsonl
from worker.cli.commands.drift_test import command
from worker.cli.tables.drift import _printable

SQE_DEMO = Path(__file__).parents[4] / "checkpoints" / "sqe-demo"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short messages that sqe-demo knows, and a long one."""
    path = tmp_path_factory.mktemp("data") / "messages.jsonl"
    lines = (SQE_DEMO / "messages.jsonl").read_text().splitlines()
    return write_jsonl(path, *lines[:2], max(lines, key=len))


def drift_test(data: Path, *options: str | Path) -> Result:
    arguments = [data, "--checkpoint", SQE_DEMO, "--halting", "q", *options]
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def report_of(result: Result) -> DriftReport:
    assert result.exit_code == 0, result.output
    return DriftReport.model_validate_json(result.stdout)


def test_the_tables_show_every_kind_within_100_columns(data: Path) -> None:
    result = drift_test(data, "--changes-per-kind", "40")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == f"sqe-demo (e35f68b18c98) on {data}"
    assert lines[1] == "known messages tested: 3"
    assert lines[2].endswith("; seed 0, at most 40 changes of each kind")
    assert max(map(len, lines[1:])) <= 100
    assert "Changed answers that were missed" in lines
    assert "Harmless changes that raised a false alarm" in lines
    for kind in ChangeKind:
        assert any(line.startswith(f"{kind.replace('_', ' ')} ") for line in lines)
    rows = {line[:20].strip(): line[20:].split() for line in lines}
    assert rows["word replaced"][1] == "40"
    assert rows["word replaced"][-3:] == ["0", "0.0", "%"]
    assert rows["ending appended"] == ["3", "3", "1", "33.3", "%", "0", "0.0", "%"]
    assert rows["unicode form"] == ["0", "0", "-", "-", "-", "-"]


def test_examples_are_shown_only_on_request_and_on_one_line_each(data: Path) -> None:
    options = ("--changes-per-kind", "40")
    assert "line:3" not in drift_test(data, *options).stdout
    shown = drift_test(data, *options, "--examples", "2").stdout.splitlines()
    start = shown.index("Missed by the model: ending appended")
    assert shown[start + 1].startswith("line:3, word ")
    assert " → " in shown[start + 1]
    assert shown[start + 2] == ""


def test_a_message_cannot_write_to_the_terminal() -> None:
    assert _printable("a\nb\x1b[31m\tc") == "a⏎b·[31m·c"


def test_the_report_is_the_same_on_stdout_and_in_its_file(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    result = drift_test(data, "--json", "--output", output, "--seed", "3", "--max-steps", "9")
    report = report_of(result)
    assert output.read_text() == result.stdout
    assert (report.data, report.seed, report.lines.tested) == (str(data), 3, 3)
    assert (report.setting.halting, report.setting.max_steps) == ("q", 9)
    assert not any(figures.examples for figures in report.kinds)


def test_what_is_not_tested_is_counted(tmp_path: Path, data: Path) -> None:
    known = data.read_text().splitlines()[0]
    mixed = write_jsonl(
        tmp_path / "mixed.jsonl", known, "oops", {"prompt": "Unheard of.", "completion": "x"}
    )
    result = drift_test(mixed, "--changes-per-kind", "1")
    assert (
        result.stdout.splitlines()[1]
        == "known messages tested: 1; not tested: 1 unknown, 1 refused"
    )
    assert result.stderr.startswith(f"{mixed}:2: not_json: ")


def test_users_mistakes_are_one_line(tmp_path: Path, data: Path) -> None:
    unknown = write_jsonl(tmp_path / "unknown.jsonl", {"prompt": "Unheard of.", "completion": "x"})
    assert refusal(drift_test(unknown)) == (
        f"{unknown}: checkpoint sqe-demo knows no message of it: give messages that it was "
        "trained on"
    )
    bare = saved(tmp_path / "bare", None)
    failed = drift_test(data, "--checkpoint", bare)
    assert isinstance(failed.exception, DriftTestError)
    assert refusal(failed).startswith("checkpoint bare has no record of its training pairs")


def test_messages_that_raise_an_alarm_unchanged_leave_the_table_empty(tmp_path: Path) -> None:
    # Nothing that an untrained network answers is solved.
    data = write_jsonl(
        tmp_path / "data.jsonl", "", "", "", {"prompt": "security", "completion": "agent test"}
    )
    shown = drift_test(data, "--checkpoint", saved(tmp_path / "tiny", RECORD)).stdout.splitlines()
    assert shown[1] == "known messages tested: 0; not tested: 1 known with an alarm unchanged"
    assert [line.split()[-4:] for line in shown if line.startswith("truncated ")] == [["-"] * 4] * 2


@pytest.mark.parametrize(
    "options",
    [
        ("--changes-per-kind", "0"),
        ("--examples", "-1"),
        ("--seed", "x"),
        ("--device", "tpu"),
    ],
)
def test_a_wrong_call_exits_with_2(data: Path, options: tuple[str, ...]) -> None:
    assert drift_test(data, *options).exit_code == 2


def test_the_file_is_read_twice_and_never_overwritten(data: Path) -> None:
    before = data.read_bytes()
    assert drift_test(data, "--output", data).exit_code == 2
    assert data.read_bytes() == before
    assert "is read several times" in drift_test(Path("/dev/stdin")).stderr
