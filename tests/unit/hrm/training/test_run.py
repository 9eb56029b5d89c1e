"""The folder of a run: its contents, and exact resuming from it."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from hrm.checkpoint import load_checkpoint
from hrm.evaluation.measurement import BothRules, RuleFigures, measure
from hrm.model.batch import Messages
from hrm.training.fit import Measurement, Progress
from hrm.training.folder import latest_step
from hrm.training.options import TrainingOptions
from hrm.training.state import STATE, RunRecord, step_folders
from hrm.training.trainer import DivergedError, StepReport, Trainer
from schemas import HaltedBy
from tests.support.runs import EXAMPLES, RECIPE, train

EVERY_FILE = {
    "accepted.pairs",
    "config.json",
    "curve.jsonl",
    "figures.json",
    "measured.json",
    "model.safetensors",
    "training.png",
    "training_pairs.json",
}


@pytest.fixture(scope="module", autouse=True)
def no_plots() -> None:
    """These runs draw their plots."""


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    train(folder)
    return folder


def test_the_folder_holds_the_best_the_steps_the_curve_and_the_plot(unbroken: Path) -> None:
    steps = {f"step_{step}" for step in range(1, 7)}
    assert files(unbroken) == EVERY_FILE | steps
    measured = json.loads((unbroken / "measured.json").read_text())
    assert (measured["steps_run"], measured["stopped"]) == (6, "steps")
    best = unbroken / f"step_{measured['step']}"
    of_the_run = {"curve.jsonl", "figures.json", "training.png"}
    assert files(best) == EVERY_FILE - of_the_run | {STATE}
    checkpoint = load_checkpoint(unbroken)
    assert load_checkpoint(best).digest == checkpoint.digest
    assert checkpoint.figures is not None
    assert checkpoint.figures.accepted.messages == 5
    assert checkpoint.figures.held_out is not None
    assert checkpoint.figures.held_out.messages == 2
    figures = json.loads((best / "measured.json").read_text())
    for examples, count in (("training_examples", 5), ("held_out_examples", 2)):
        assert figures[examples] == measured[examples]
        rate = measured[examples]["q"]["solve_rate"]
        assert rate["of"] == count
        # All training examples are measured: there is nothing to estimate.
        assert (rate["low"] is None) == (examples == "training_examples")
    curve = [json.loads(line) for line in (unbroken / "curve.jsonl").read_text().splitlines()]
    assert [report["step"] for report in curve] == [1, 2, 3, 4, 5, 6]
    assert curve[0].keys() == asdict(StepReport(1, 1.0, 0, None, None, None, None)).keys()
    assert (unbroken / "training.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("cut", [2, 4, 6])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(
    tmp_path: Path, unbroken: Path, cut: int
) -> None:
    folder = tmp_path / "unbroken"
    train(folder, until=cut)
    with (folder / "curve.jsonl").open("a") as curve:
        curve.write('{"step": ')  # torn by a crash
    assert [path.name for path in step_folders(folder)] == [f"step_{n}" for n in range(1, cut)]
    again = train(folder, resume=True)
    # The interrupted step is repeated.
    assert [report.step for report in again] == list(range(cut, 7))
    for name in ("curve.jsonl", "model.safetensors", "step_6/model.safetensors"):
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes(), name
    ended, expected = latest_step(folder), latest_step(unbroken)
    assert ended.state.keys() == expected.state.keys()
    for key, value in expected.state.items():
        assert torch.equal(ended.state[key], value), key
    assert ended.record.measurements == expected.record.measurements


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path, unbroken: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(unbroken, folder)
    assert train(folder, resume=True) == []
    assert load_checkpoint(folder).digest == load_checkpoint(unbroken).digest


def test_the_best_is_written_on_resuming_if_a_crash_prevented_it(
    tmp_path: Path, unbroken: Path
) -> None:
    folder = tmp_path / "copy"
    best = json.loads((unbroken / "measured.json").read_text())["step"]
    shutil.copytree(unbroken / f"step_{best}", folder / f"step_{best}")
    train(folder, until=best + 1, resume=True)
    assert load_checkpoint(folder).digest == load_checkpoint(unbroken).digest
    assert json.loads((folder / "measured.json").read_text())["step"] == best


def test_a_run_whose_best_weights_are_gone_goes_on_without_them(
    tmp_path: Path, unbroken: Path
) -> None:
    for cut in (3, 6):
        folder = tmp_path / f"from_{cut}"
        shutil.copytree(unbroken / f"step_{cut}", folder / f"step_{cut}")
        train(folder, resume=True)
        measured = json.loads((folder / "measured.json").read_text())
        assert measured["step"] >= cut
        best = load_checkpoint(unbroken / f"step_{measured['step']}").digest
        assert load_checkpoint(folder).digest == best


def test_the_end_is_measured_with_all_messages_and_the_best_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "_better", lambda _, new, __: new.step <= 2)
    train(tmp_path, sample=2)
    measured = json.loads((tmp_path / "measured.json").read_text())
    during = json.loads((tmp_path / "step_2" / "measured.json").read_text())
    for name, of in ((measured, 5), (during, 2)):
        assert name["step"] == 2
        rate = name["training_examples"]["q"]["solve_rate"]
        assert rate["of"] == of
        assert (rate["low"] is None) == (of == 5)
    assert (measured["complete"], during["complete"]) == (True, False)
    network = load_checkpoint(tmp_path / "step_2").build()
    all_five = measure(network, Messages.whole(EXAMPLES), HaltedBy.Q)
    recorded = measured["training_examples"]["q"]
    assert recorded["token_accuracy"] == pytest.approx(all_five.token_accuracy)
    figures = {
        measurement.training.q.examples for measurement in latest_step(tmp_path).record.measurements
    }
    assert figures == {2}


def test_only_the_latest_steps_are_kept_and_nothing_else_is_removed(tmp_path: Path) -> None:
    (tmp_path / "step_1").mkdir()
    (tmp_path / "step_1" / "model.safetensors").write_bytes(b"another's")
    train(tmp_path, keep=2, recipe=RECIPE.model_copy(update={"seed": 1}), until=5)
    assert [path.name for path in step_folders(tmp_path)] == ["step_3", "step_4"]


def test_by_default_the_best_and_the_last_step_are_saved(tmp_path: Path) -> None:
    train(tmp_path, save_every=None)
    measurements = latest_step(tmp_path).record.measurements
    best = [
        m.step
        for i, m in enumerate(measurements)
        if m.rank > max((earlier.rank for earlier in measurements[:i]), default=())
    ]
    assert [path.name for path in step_folders(tmp_path)] == [
        f"step_{step}" for step in sorted({*best, 6})
    ]


def test_divergence_keeps_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.step

    def diverging(trainer: Trainer) -> StepReport:
        if trainer.step_count == 3:
            trainer.network.state_dict()["lm_head.weight"].fill_(torch.nan)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", diverging)
    with pytest.raises(DivergedError) as caught:
        train(tmp_path)
    kept = json.loads((tmp_path / "measured.json").read_text())["step"]
    told = str(caught.value)
    assert told.isprintable()
    assert told.startswith(f"{tmp_path}: diverged at step 4 ")
    assert "lower lr (0.01)" in told
    assert told.endswith(f"(step {kept} is kept)")
    assert load_checkpoint(tmp_path).digest == load_checkpoint(tmp_path / f"step_{kept}").digest
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


def test_measurements_survive_a_record_exactly() -> None:
    third = RuleFigures(3, 1, 1 / 3, 2 / 3, 16 / 3)
    measurement = Measurement(7, BothRules(third, third), None)
    record = RunRecord(
        options=TrainingOptions(lr=1 / 3, layers="1 and 2", held_out=Path("a/b")),
        data_sha256="d",
        held_out_sha256=None,
        measurements=(measurement,),
        seconds=0.1,
    )
    read = RunRecord.model_validate_json(record.model_dump_json())
    assert read == record


def test_weights_that_no_worker_can_evaluate_have_no_precision(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The conversion of these runs gives more puzzles than the table has."""
    train(tmp_path)
    assert not (tmp_path / "precision.json").exists()
    (line,) = (each for each in caplog.messages if each.startswith("no precision.json is written"))
    assert "exceeds its table of 5 puzzles" in line
