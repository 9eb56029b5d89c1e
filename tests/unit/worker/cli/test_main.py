"""The command's own work: finding subcommands, exit status, errors in one line."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

from schemas import SQEHRMError
from schemas.publish import json_schema
from worker.cli import main as cli


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of `sqe-hrm ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["sqe-hrm", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    code = exited.value.code
    assert code is None or isinstance(code, int)
    return code or 0


def add_command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """A subcommand `broken` that raises `error`."""

    @click.command("broken")
    def command() -> None:
        raise error

    module = ModuleType("worker.cli.commands.broken")
    module.__dict__["command"] = command
    monkeypatch.setitem(sys.modules, "worker.cli.commands.broken", module)
    monkeypatch.setitem(cli.COMMANDS, "broken", "fails")


def test_help_lists_every_command_with_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--help") == 0
    listed = capsys.readouterr().out.partition("Commands:\n")[2]
    words = " ".join(listed.split())
    for name, line in cli.COMMANDS.items():
        assert f"{name} {line}" in words


def test_help_is_listed_without_importing_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cli.COMMANDS:
        monkeypatch.setitem(sys.modules, f"worker.cli.commands.{name}", None)
    assert call(monkeypatch, "-h") == 0


def test_every_module_of_commands_is_listed_and_every_listed_one_is_there() -> None:
    folder = Path(cli.__file__).parent / "commands"
    there = {file.stem.replace("_", "-") for file in folder.glob("*.py")} - {"--init--"}
    assert set(cli.COMMANDS) == there


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_found_and_documented(name: str) -> None:
    command = cli.LazyGroup().get_command(click.Context(cli.cli), name)
    assert command is not None
    assert command.name == name
    assert command.help


def test_the_version_is_the_distributions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("sqe-hrm, version ")


@pytest.mark.parametrize("arguments", [["launch"], ["schema", "--loud"], ["--loud"], ["schema"]])
def test_a_wrong_call_is_told_on_stderr_with_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Usage: sqe-hrm ")
    assert "Error: " in printed.err.splitlines()[-1]
    assert "Traceback" not in printed.err


def test_an_unknown_command_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "launch") == 2
    assert "'launch'" in capsys.readouterr().err


def test_an_error_of_this_project_is_one_line_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_command(monkeypatch, SQEHRMError("data.jsonl: line 3: empty: give a prompt"))
    assert call(monkeypatch, "broken") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "sqe-hrm: error: data.jsonl: line 3: empty: give a prompt\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interruption_has_the_shells_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    add_command(monkeypatch, error)
    assert call(monkeypatch, "broken") == 130
    # click ends the terminal's line with ^C first.
    assert capsys.readouterr().err.strip() == "sqe-hrm: interrupted"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    add_command(monkeypatch, ZeroDivisionError("a bug"))
    monkeypatch.setattr(sys, "argv", ["sqe-hrm", "broken"])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main()


def test_a_missing_module_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("worker.cli.commands.train", "hrm.training.setup"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert call(monkeypatch, "train", "--help") == 1
    printed = capsys.readouterr()
    assert printed.err == (
        "sqe-hrm: error: the module torch is missing: it comes with the extra 'worker' "
        "(in a checkout: pip install '.[worker]')\n"
    )


def test_a_missing_module_of_the_project_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "worker.cli.commands.train", raising=False)
    monkeypatch.setitem(sys.modules, "hrm.training.setup", None)
    monkeypatch.setattr(sys, "argv", ["sqe-hrm", "train", "--help"])
    with pytest.raises(ModuleNotFoundError, match=r"hrm\.training\.setup"):
        cli.main()


def test_the_installed_command_runs() -> None:
    program = Path(sys.executable).with_name("sqe-hrm")
    done = subprocess.run(
        [program, "schema", "verdict"], capture_output=True, text=True, check=True
    )
    assert done.stdout == json_schema("verdict")
    assert done.stderr == ""


def test_a_worker_names_misspelt_variables_and_bad_values_at_its_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("sqe-hrm")), "worker"],
        cwd=tmp_path,
        env={"SQE_CHEKPOINT": "mine", "SQE_OTHER": "1", "SQE_METRICS_PORT": "http"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[:2] == [
        "sqe-hrm: warning: SQE_CHEKPOINT: no such setting; did you mean SQE_CHECKPOINT?",
        "sqe-hrm: warning: SQE_OTHER: no such setting",
    ]
    (error,) = lines[2:]
    assert error.startswith("sqe-hrm: error: SQE_METRICS_PORT: input should be a valid integer")
    assert not list(tmp_path.iterdir())


# OpenMP's threads.


def test_threads_of_a_training_sleep_while_they_wait() -> None:
    """OpenMP says what it read when torch loaded it."""
    environ = {name: value for name, value in os.environ.items() if name not in cli.WAITING}
    shown = subprocess.run(
        [sys.executable, "-m", "worker", "train", "--help"],
        env={**environ, "OMP_DISPLAY_ENV": "true"},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    if "OPENMP DISPLAY ENVIRONMENT" not in shown:
        pytest.skip("torch's OpenMP shows no settings")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown


@pytest.mark.parametrize("name", cli.WAITING)
def test_a_users_own_choice_of_waiting_stays(name: str) -> None:
    environ = {name: "1"}
    cli.let_threads_sleep(environ)
    assert environ == {name: "1"}
