"""worker.cli.outcome_file: written line by line, read again, continued."""

import os
from pathlib import Path

import pytest

from schemas import Rejection, RejectionReason
from tests.support.stubs import message, verdict
from worker.cli.outcome_file import AnsweredLines, OutcomeFileError, appending, read_outcomes
from worker.client import ResultTimeout

VERDICT = verdict(message())
REJECTION = Rejection(message_id="m", reason=RejectionReason.NOT_JSON, detail="why")


def test_an_outcome_is_in_the_file_at_once_and_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with appending(path, anew=True) as write:
        write(7, VERDICT)
        write(3, REJECTION)
        assert list(read_outcomes(path)) == [(7, VERDICT), (3, REJECTION)]
    with appending(path, anew=False) as write:
        write(1, VERDICT)
    assert [number for number, _ in read_outcomes(path)] == [7, 3, 1]
    assert path.read_text().startswith('{"line":7,"message_id":')


def test_an_incomplete_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with appending(path, anew=True) as write:
        write(1, VERDICT)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:100])
    assert list(read_outcomes(path)) == [(1, VERDICT)]
    assert path.read_bytes() == whole


def test_an_older_file_is_replaced_by_the_first_outcome_or_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("older")
    with appending(path, anew=True) as write:
        assert path.read_text() == "older"
        write(1, VERDICT)
        assert list(read_outcomes(path)) == [(1, VERDICT)]
    with appending(path, anew=True):
        pass
    assert path.read_text() == ""


def test_an_error_of_the_run_is_not_reported_as_one_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("older")
    with pytest.raises(ResultTimeout), appending(path, anew=True):
        raise ResultTimeout  # an OSError, as every TimeoutError
    assert path.read_text() == "older"


def test_a_pipe_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with appending(path, anew=True) as write:
        write(1, REJECTION)
    assert os.read(reader, 1000).startswith(b'{"line":1,"message_id":"m",')
    os.close(reader)


@pytest.mark.parametrize(
    "text",
    ["no json", "[]", "{}", '{"line": 1}', '{"line": 1, "reason": "other"}'],
)
def test_a_line_that_is_no_outcome_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(f"{text}\n")
    with pytest.raises(OutcomeFileError, match=r"out\.jsonl:1: not a line's outcome"):
        list(read_outcomes(path))


@pytest.mark.parametrize("number", [0, -1, '"1"', 1.5, True])
def test_a_line_has_a_number_from_1(tmp_path: Path, number: object) -> None:
    path = tmp_path / "out.jsonl"
    with appending(path, anew=True) as write:
        write(number, REJECTION)  # type: ignore[arg-type]
    path.write_text(path.read_text().replace("True", "true"))
    with pytest.raises(OutcomeFileError):
        list(read_outcomes(path))


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(OutcomeFileError, match=r"cannot write .*missing/out: No such file"),
        appending(tmp_path / "missing" / "out", anew=True),
    ):
        pass


def test_lines_are_answered_by_number_and_message() -> None:
    lines = AnsweredLines()
    lines.add(5, "five")
    lines.add(2, "two")
    assert [lines.has(number, "any") for number in (1, 3, 4, 6, 1000)] == [False] * 5
    assert lines.has(5, "five")
    assert lines.has(2, "two")
    with pytest.raises(OutcomeFileError, match="line 2 has the outcome of another message"):
        lines.has(2, "five")
