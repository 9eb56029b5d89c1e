"""The files of a command: what may be written, and what a failure says."""

import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from schemas import SQEHRMError
from worker.cli.commands.submit import command as submit
from worker.cli.files import (
    check_outputs,
    check_rereadable,
    check_strict,
    read_with_progress,
    write_text,
)


def test_an_output_may_not_be_an_input_by_any_name(tmp_path: Path) -> None:
    data, link = tmp_path / "data", tmp_path / "link"
    link.symlink_to(data)
    check_outputs((data, None), (tmp_path / "out", None))
    for output in (data, link, tmp_path / "x" / ".." / "data"):
        with pytest.raises(click.UsageError, match="is named twice: name another file"):
            check_outputs((data, None), (None, output))


def test_two_outputs_may_not_be_one_file(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="is named twice"):
        check_outputs((), (tmp_path / "out", tmp_path / "out"))


def test_a_pipe_cannot_be_read_twice(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(click.UsageError, match="pipe is read several times: give a regular file"):
        check_rereadable((None, pipe))


def test_a_failure_names_the_file(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "file"
    with pytest.raises(SQEHRMError) as caught, read_with_progress(missing, "Reading"):
        pass
    assert str(caught.value) == f"cannot read {missing}: No such file or directory"
    with pytest.raises(SQEHRMError) as caught:
        write_text(missing, "text")
    assert str(caught.value) == f"cannot write {missing}: No such file or directory"


def test_a_text_is_written_with_its_line_end(tmp_path: Path) -> None:
    write_text(tmp_path / "out", "täxt")
    assert (tmp_path / "out").read_text(encoding="utf-8") == "täxt\n"


def test_strict_is_content_with_no_refused_line() -> None:
    check_strict(Path("data"), 0)
    with pytest.raises(SQEHRMError, match="data: 1 refused: fix the lines named"):
        check_strict(Path("data"), 1)


def test_submit_does_not_write_over_its_messages(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("not sent\n")
    result = CliRunner().invoke(submit, ["--data-path", str(data), "--output", str(data)])
    assert result.exit_code == 2
    assert f"{data} is named twice" in result.stderr
    assert data.read_text() == "not sent\n"
