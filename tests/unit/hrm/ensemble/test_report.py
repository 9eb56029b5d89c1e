"""An ensemble and its members are evaluated side by side, without a command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from hrm.checkpoint import Checkpoint
from hrm.data.files import RefusedLine
from hrm.ensemble.combiners import Strategy
from hrm.ensemble.ensemble import Ensemble
from hrm.ensemble.report import EnsembleEvaluation
from hrm.ensemble.stacking import EnsembleError
from hrm.inference.config import Inference
from tests.support.ensembles import WIDER, member
from tests.support.evaluations import jsonl

INFERENCE = Inference(slots=2, max_steps=2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    folder = tmp_path_factory.mktemp("members")
    return [member(folder / "a", 1), member(folder / "b", 2, WIDER)]


def write(path: Path, *words: str, bad: bool = False) -> Path:
    pairs = [{"prompt": f"test {word}", "completion": "agent data"} for word in words]
    path.write_bytes(jsonl(*pairs, *(["no json"] if bad else [])).getvalue())
    return path


def test_every_member_and_the_ensemble_see_the_same_examples(
    pair: list[Checkpoint], tmp_path: Path
) -> None:
    data = write(tmp_path / "data.jsonl", "a", "b", "c")
    report = EnsembleEvaluation(data, INFERENCE).report(Ensemble(pair))
    assert [each.setting.checkpoint for each in report.members] == ["a", "b"]
    assert report.ensemble.setting.checkpoint == "ensemble(a+b)"
    for each in (*report.members, report.ensemble):
        assert (each.data, each.overall.examples) == (str(data), 3)
    assert report.calibration is None


def test_equal_examples_count_once_in_the_comparison_of_each_two(
    pair: list[Checkpoint], tmp_path: Path
) -> None:
    # The policy counts five puzzles: the sixth line repeats the first.
    data = write(tmp_path / "data.jsonl", "a", "b b", "c c c", "d d d d", "e", "a")
    report = EnsembleEvaluation(data, INFERENCE).report(Ensemble(pair))
    assert report.ensemble.overall.examples == 6
    assert report.repeated_lines == 1
    assert [each.names for each in report.pairs] == [
        ("a", "b"),
        ("a", "ensemble(a+b)"),
        ("b", "ensemble(a+b)"),
    ]
    assert {each.examples for each in report.pairs} == {5}


def test_a_combiner_is_fitted_on_pairs_that_the_data_lacks(
    pair: list[Checkpoint], tmp_path: Path
) -> None:
    data = write(tmp_path / "data.jsonl", "a")
    evaluation = EnsembleEvaluation(data, INFERENCE)
    stacking, left_out = evaluation.fit(pair, None, write(tmp_path / "cal.jsonl", "a", "b", "c"))
    assert (stacking.examples, left_out) == (2, 1)
    report = evaluation.report(Ensemble(pair, Strategy.STACKING, None, stacking), left_out)
    assert report.calibration is not None
    assert (report.calibration.examples, report.calibration.left_out) == (2, 1)
    with pytest.raises(EnsembleError, match=r"data\.jsonl has no pair that .*data\.jsonl lacks"):
        evaluation.fit(pair, None, data)


def test_a_caller_opens_the_files_and_hears_of_each_refused_line_once(
    pair: list[Checkpoint], tmp_path: Path
) -> None:
    data = write(tmp_path / "data.jsonl", "a", bad=True)
    calibration = write(tmp_path / "cal.jsonl", "b", bad=True)
    opened: list[tuple[str, str]] = []
    refused: list[tuple[str, int]] = []

    @contextmanager
    def open_file(path: Path, purpose: str) -> Iterator[BinaryIO]:
        opened.append((path.name, purpose))
        with path.open("rb") as source:
            yield source

    def on_refused(path: Path, line: RefusedLine) -> None:
        refused.append((path.name, line.number))

    evaluation = EnsembleEvaluation(data, INFERENCE, open_file=open_file, on_refused=on_refused)
    evaluation.fit(pair, None, calibration)
    evaluation.report(Ensemble(pair))
    assert opened == [
        ("cal.jsonl", "Reading"),
        ("data.jsonl", "Reading"),
        *[("data.jsonl", "Evaluating")] * 3,
    ]
    assert refused == [("cal.jsonl", 2), ("data.jsonl", 2)]
