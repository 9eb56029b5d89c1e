"""The guide's example evaluates a file as it stands."""

import re
import runpy
from itertools import islice
from pathlib import Path

import pytest

from hrm.evaluation.report import EvaluationReport

ROOT = Path(__file__).parents[4]


def test_the_guides_example_evaluates_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, section = (ROOT / "hrm" / "README.md").read_text().partition("\n## From Python\n")
    snippets = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (snippet,) = (each for each in snippets if "evaluate_file" in each)
    script = tmp_path / "example.py"
    script.write_text(snippet)
    with (ROOT / "checkpoints" / "sqe-demo" / "messages.jsonl").open() as messages:
        (tmp_path / "messages.jsonl").write_text("".join(islice(messages, 3)))
    monkeypatch.chdir(tmp_path)
    report = runpy.run_path(str(script))["report"]
    assert isinstance(report, EvaluationReport)
    assert report.overall.examples == 3
    assert capsys.readouterr().out.endswith(f"{report.overall.solved}\n")
