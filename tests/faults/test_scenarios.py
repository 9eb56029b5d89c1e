"""Every fault in short: each message has exactly one outcome, and nothing is left.

`make faults` makes the same faults in their full size.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.faults import __main__ as command
from tests.faults.ledger import Row
from tests.faults.scenarios.size import Size
from tests.faults.scenarios.table import SCENARIOS, Scenario
from tests.support.processes import ROOT

BY_COMMAND = "cut-off"
"""The fault that the command makes here."""


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != BY_COMMAND])
def test_a_fault_loses_nothing_and_counts_nothing_twice(name: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    row = scenario.run(tmp_path, scenario.short)
    assert row.problems == ()
    assert (row.lost, row.counted_twice) == (0, 0)
    assert row.verdicts + row.dead_letters == row.messages > 0


def test_a_fault_that_cannot_be_made_has_a_row_and_ends_the_command_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_folder: Path, _size: Size) -> Row:
        raise AssertionError("not within 30 s: taken")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # it keeps the logs
    size = Size(1, 2)
    monkeypatch.setitem(SCENARIOS, "new", Scenario("a new fault", run, size, size))
    assert command.main(["--short", "--only", "new"]) == 1
    printed = capsys.readouterr().out
    assert "| a new fault | - | - |" in printed
    assert "- a new fault: AssertionError: not within 30 s: taken" in printed


def test_the_command_prints_the_row_of_a_fault() -> None:
    """In a network namespace of its own, if there can be one."""
    ended = subprocess.run(
        (sys.executable, "-m", "tests.faults", "--short", "--only", BY_COMMAND),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "| worker cut off for 2.5 s by a " in ended.stdout
    assert "Not as it has to be" not in ended.stdout
