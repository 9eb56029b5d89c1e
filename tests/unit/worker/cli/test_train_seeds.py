"""`sqe-hrm train --seeds`: several runs, their spread, and the best as the checkpoint."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hrm.checkpoint import load_checkpoint
from hrm.training.run import TrainingRun
from hrm.training.stop import StopRequest
from hrm.training.trainer import DivergedError, StepReport, Trainer
from tests.support.commands import refusal
from worker.cli.commands.train import command

SIZES = ("--hidden-size", "16", "--num-heads", "2", "--layers", "1", "--puzzle-space", "8")
SHORT = ("--steps", "2", "--measure-every", "1", "--lr", "0.01")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "messages.jsonl"
    pairs = ({"prompt": f"plan the {word}", "completion": word} for word in "abc")
    path.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    return path


def train(data: Path, output: Path, *options: str) -> Result:
    arguments = ["--data-path", str(data), "--output", str(output), "--device", "cpu", *options]
    return CliRunner().invoke(command, arguments)


def measured(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "measured.json").read_text())
    return content


def digests(output: Path) -> dict[str, str]:
    return {each.name: load_checkpoint(each).digest for each in sorted(output.glob("seed-*"))}


def told(result: Result) -> str:
    assert result.exit_code == 2, result.output
    return result.stderr.partition("Error: ")[2].strip()


def test_each_seed_has_a_run_and_the_best_is_the_checkpoint(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = train(data, output, *SIZES, *SHORT, "--seeds", "2", "--seed", "5")
    assert result.exit_code == 0, result.output
    assert digests(output).keys() == {"seed-5", "seed-6"}
    content = measured(output)
    best = content["recipe"]["seed"]
    assert load_checkpoint(output).digest == digests(output)[f"seed-{best}"]
    assert [each["seed"] for each in content["seeds"]] == [5, 6]
    for each in content["seeds"]:
        of_run = measured(output / f"seed-{each['seed']}")
        for rule in ("max_steps", "q"):
            for name, figure in each["training"][rule].items():
                assert of_run["training_examples"][rule][name] == figure
    rows = re.findall(r"^(5|6|mean|min|max) +\S", result.stdout, re.MULTILINE)
    assert rows == ["5", "6", "mean", "min", "max"]
    assert result.stdout.splitlines()[-1] == (
        f"{output}: best is seed {best}, step {content['step']}"
    )
    # The run of a seed is that which it would be alone.
    alone = train(data, tmp_path / "alone", *SIZES, *SHORT, "--seed", "6")
    assert alone.exit_code == 0
    assert load_checkpoint(tmp_path / "alone").digest == digests(output)["seed-6"]


def test_resuming_goes_on_with_the_interrupted_run_and_the_rest(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert train(data, whole, *SIZES, *SHORT, "--seeds", "3").exit_code == 0
    interrupted_in(monkeypatch, "seed-1")
    result = train(data, output, *SIZES, *SHORT, "--seeds", "3")
    assert result.stderr.splitlines()[-1] == (
        f"{output}: stopped at step 1 of seed 1: resume with --resume"
    )
    # What is finished can be used.
    assert load_checkpoint(output).digest == digests(whole)["seed-0"]
    monkeypatch.undo()
    seen: list[str] = []
    run = TrainingRun.train

    def noted(self: TrainingRun, **options: Any) -> object:  # noqa: ANN401
        seen.append(self.folder.name)
        return run(self, **options)

    monkeypatch.setattr(TrainingRun, "train", noted)
    resumed = train(data, output, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert seen == ["seed-1", "seed-2"]
    assert digests(output) == digests(whole)
    assert load_checkpoint(output).digest == load_checkpoint(whole).digest
    again = train(data, output, "--resume", "--seeds", "3")
    assert again.exit_code == 0
    assert seen == ["seed-1", "seed-2"]


def interrupted_in(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """Ask the run in `folder` to stop after its first step."""
    run = TrainingRun.train

    def asked(self: TrainingRun, *, stop: StopRequest, **options: Any) -> object:  # noqa: ANN401
        def on_step(report: StepReport) -> None:
            options["on_step"](report)
            if self.folder.name == folder:
                signals.append(15)
                stop.ask()

        return run(self, stop=stop, **(options | {"on_step": on_step}))

    signals: list[int] = []
    monkeypatch.setattr(TrainingRun, "train", asked)
    monkeypatch.setattr("worker.cli.commands.train.SIGNALLED", 128)
    monkeypatch.setattr(
        "worker.cli.commands.train.asked_by_signals", lambda _: contextlib.nullcontext(signals)
    )


def test_a_seed_that_diverges_does_not_end_the_others(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def diverging(self: Trainer) -> StepReport:
        if self.config.seed in seeds:
            raise DivergedError("diverged at step 1")
        return step(self)

    monkeypatch.setattr(Trainer, "step", diverging)
    seeds = {0}
    result = train(data, tmp_path / "one", *SIZES, *SHORT, "--seeds", "2")
    assert result.exit_code == 0, result.output
    assert [each["seed"] for each in measured(tmp_path / "one")["seeds"]] == [1]
    assert measured(tmp_path / "one")["diverged_seeds"] == [0]
    assert "seed-0: diverged at step 1 (nothing to keep yet)" in result.stderr
    seeds = {0, 1}
    assert "seed-0: diverged at step 1" in refusal(
        train(data, tmp_path / "two", *SIZES, *SHORT, "--seeds", "2")
    )


# Refusals.


@pytest.fixture
def runs(data: Path, tmp_path: Path) -> Path:
    output = tmp_path / "out"
    assert train(data, output, *SIZES, *SHORT, "--seeds", "2").exit_code == 0
    return output


def test_other_runs_than_those_of_the_folder_are_not_resumed(data: Path, runs: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    fix = "leave it out, or start anew in another folder"
    for options, wording in (
        (("--seeds", "3"), f"--seeds 3, but the run in {runs} has 2: {fix}"),
        (("--seed", "1"), f"--seed 1, but the run in {runs} has 0: {fix}"),
        (("--steps", "9"), f"--steps 9, but the run in {runs} has 2: {fix}"),
    ):
        assert told(train(data, runs, "--resume", *options)) == wording
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


def test_a_single_run_has_no_other_seeds(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "single"
    assert train(data, output, *SIZES, *SHORT, "--seeds", "1").exit_code == 0
    assert not list(output.glob("seed*"))
    line = told(train(data, output, "--resume", "--seeds", "2"))
    assert line.startswith(f"--seeds 2, but the run in {output} has 1: ")


@pytest.mark.parametrize("seeds", ["0", "101", "two"])
def test_a_wrong_number_of_seeds_is_a_wrong_call(data: Path, tmp_path: Path, seeds: str) -> None:
    assert "--seeds" in told(train(data, tmp_path / "out", "--seeds", seeds))
    assert not (tmp_path / "out").exists()


def test_seeds_end_at_the_largest(data: Path, tmp_path: Path) -> None:
    options = ("--seeds", "2", "--seed", str(2**63 - 1))
    line = told(train(data, tmp_path / "out", *options))
    assert line == "--seed and --seeds: together beyond the largest seed"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [(), ("--seeds", "2"), ("--seeds", "3")])
def test_runs_are_not_started_over_by_chance(
    data: Path, runs: Path, options: tuple[str, ...]
) -> None:
    line = refusal(train(data, runs, *SIZES, *SHORT, *options))
    assert line.startswith(f"{runs}: holds seeds.json of a training: go on with --resume")


def test_bad_data_leaves_nothing(tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text("oops\n")
    assert "line 1" in refusal(train(data, tmp_path / "out", *SIZES, *SHORT, "--seeds", "2"))
    assert not (tmp_path / "out").exists()


def test_other_data_or_a_damaged_record_is_named(data: Path, runs: Path) -> None:
    (runs / "seed-1" / "measured.json").unlink()
    for step in runs.glob("seed-1/step_*"):
        (step / "training.state").unlink()
    data.write_text(data.read_text() * 2)
    line = refusal(train(data, runs, "--resume"))
    assert line.startswith(f"{runs}: its other seeds were trained on other data: ")
    (runs / "seeds.json").write_text('{"seeds": ')
    assert refusal(train(data, runs, "--resume")) == (
        f"{runs / 'seeds.json'}: damaged: start anew in another folder"
    )
