"""A run is asked to stop, knows where it can be left, and goes on to the same end."""

import json
from pathlib import Path

import pytest
import torch

from hrm.training.folder import latest_step
from hrm.training.meter import Meter
from hrm.training.state import step_folders
from hrm.training.stop import InterruptedRunError, StopAskedError, StopRequest
from hrm.training.trainer import StepReport
from tests.support.runs import train


def test_a_request_waits_for_the_next_check() -> None:
    stop = StopRequest()
    stop.check()
    stop.ask()
    with pytest.raises(StopAskedError):
        stop.check()


def test_work_that_changes_nothing_is_left_at_once() -> None:
    stop = StopRequest()
    with pytest.raises(StopAskedError), stop.at_once():
        stop.ask()
    # What follows, such as saving, is not disturbed by a second request.
    stop.ask()


def test_such_work_does_not_begin_after_a_request() -> None:
    stop = StopRequest()
    stop.ask()
    with pytest.raises(StopAskedError), stop.at_once():
        pytest.fail("it began")


def test_after_such_work_a_request_waits_again() -> None:
    stop = StopRequest()
    with stop.at_once():
        pass
    stop.ask()


# Runs.


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_a_run_that_was_asked_to_stop_goes_on_to_the_same_end(
    tmp_path: Path, unbroken_and_rarely_measured: Path, cut: int
) -> None:
    folder = tmp_path / "run"
    stop = StopRequest()

    def ask(report: StepReport) -> None:
        if report.step == cut:
            stop.ask()

    with pytest.raises(InterruptedRunError) as caught:
        train(folder, save_every=None, every=3, stop=stop, on_step=ask)
    assert str(caught.value) == f"{folder}: stopped at step {cut}: resume with --resume"
    (*_, saved) = step_folders(folder)
    assert saved.name == f"step_{cut}"
    # Asked before it was measured: step 3 is measured when the run goes on.
    assert json.loads((saved / "measured.json").read_text())["training_examples"] is None
    train(folder, resume=True)
    ended, expected = latest_step(folder), latest_step(unbroken_and_rarely_measured)
    assert [measurement.step for measurement in ended.record.measurements] == [3, 6]
    assert ended.record.measurements == expected.record.measurements
    for key, value in expected.state.items():
        assert torch.equal(ended.state[key], value), key
    for name in ("curve.jsonl", "model.safetensors"):
        assert (folder / name).read_bytes() == (unbroken_and_rarely_measured / name).read_bytes()


@pytest.fixture(scope="module")
def unbroken_and_rarely_measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "rarely"
    train(folder, save_every=None, every=3)
    return folder


def test_a_measurement_is_left_at_once_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken_and_rarely_measured: Path
) -> None:
    stop = StopRequest()
    with monkeypatch.context() as patch:
        patch.setattr(Meter, "measure", lambda *_: stop.ask())
        with pytest.raises(InterruptedRunError, match="at step 3"):
            train(tmp_path, every=3, stop=stop)
    train(tmp_path, resume=True)
    expected = latest_step(unbroken_and_rarely_measured).record.measurements
    assert latest_step(tmp_path).record.measurements == expected


def test_a_run_that_stops_while_all_is_measured_is_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopRequest()
    with monkeypatch.context() as patch:
        patch.setattr(Meter, "measure_all", lambda *_: stop.ask())
        with pytest.raises(InterruptedRunError, match="at step 6"):
            train(tmp_path, sample=2, stop=stop)
    assert json.loads((tmp_path / "measured.json").read_text())["complete"] is False
    assert train(tmp_path, resume=True) == []
    assert json.loads((tmp_path / "measured.json").read_text())["complete"] is True


def test_a_run_that_stops_before_its_first_step_leaves_nothing_to_resume(tmp_path: Path) -> None:
    stop = StopRequest()
    stop.ask()
    with pytest.raises(InterruptedRunError, match="stopped before the first step: start again"):
        train(tmp_path, stop=stop)
    assert step_folders(tmp_path) == []
    assert len(train(tmp_path)) == 6


def test_a_step_is_saved_after_some_minutes_also_between_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minutes = iter(range(0, 1000, 4))
    monkeypatch.setattr("hrm.training.run.time.monotonic", lambda: 60.0 * next(minutes))
    train(tmp_path, save_every=None, every=6, until=5)
    assert 1 <= len(step_folders(tmp_path)) < 5
    assert latest_step(tmp_path).record.measurements == ()
    assert not (tmp_path / "model.safetensors").exists()


def test_what_a_crash_left_of_a_step_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step_9.partial" / "deep").mkdir(parents=True)
    train(tmp_path, until=3)
    assert not (tmp_path / ".step_9.partial").exists()
