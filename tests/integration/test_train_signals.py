"""`sqe-hrm train` under signals: a run that is stopped, however, goes on as if it had not been."""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from hrm.training.state import read_step, step_folders
from tests.support.processes import DEADLINE, REAL, wait_for

SIZES = ("--hidden-size", "16", "--num-heads", "2", "--layers", "1", "--puzzle-space", "8")
EVERY = 3
SAVING = ("--save-every", str(EVERY), "--keep", "999")
RECIPE = ("--steps", "100000", "--measure-every", str(EVERY), *SAVING)
"""Far more steps than any test waits for."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "messages.jsonl"
    pairs = ({"prompt": f"plan the {word}", "completion": f"{word} {word}"} for word in "abcd")
    path.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    return path


def start(
    data: Path, output: Path, *options: str, ignored: Sequence[int] = ()
) -> subprocess.Popen[str]:
    def dispositions() -> None:
        # A shell starts its background jobs, maybe these tests, with SIGINT ignored.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    arguments = ["--data-path", str(data), "--output", str(output), "--device", "cpu", *options]
    return subprocess.Popen(
        [REAL[0], "train", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=dispositions,  # noqa: PLW1509 - no other thread runs here
    )


def latest(output: Path) -> int:
    return max((int(each.name.removeprefix("step_")) for each in step_folders(output)), default=0)


def signalled(
    process: subprocess.Popen[str], output: Path, *numbers: int, past: int | None = None
) -> str:
    """Send `numbers` once the run has saved a step `past` those it had; returns its last words."""
    past = latest(output) if past is None else past
    try:
        wait_for(lambda: latest(output) > past, what="a saved step")
        for number in numbers:
            process.send_signal(number)
        _, said = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    return said.splitlines()[-1]


def told(output: Path) -> str:
    return f"{output}: stopped at step {latest(output)}: resume with --resume"


def test_a_run_that_was_stopped_in_every_way_goes_on_as_one_that_was_not(
    data: Path, tmp_path: Path
) -> None:
    output, unbroken = tmp_path / "run", tmp_path / "unbroken"
    process = start(data, output, *SIZES, *RECIPE)
    assert signalled(process, output, signal.SIGTERM) == told(output)
    assert process.returncode == 143
    process = start(data, output, "--resume", *SAVING)
    # Those after the first neither disturb the saving nor change the status.
    several = (signal.SIGINT, signal.SIGTERM, signal.SIGINT)
    assert signalled(process, output, *several) == told(output)
    assert process.returncode == 130
    process = start(data, output, "--resume", *SAVING)
    signalled(process, output, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    process = start(data, output, "--resume", *SAVING)
    # Its terminal goes.
    assert signalled(process, output, signal.SIGHUP) == told(output)
    assert process.returncode == 129

    common = latest(output) // EVERY * EVERY
    process = start(data, unbroken, *SIZES, *RECIPE)
    signalled(process, unbroken, signal.SIGTERM, past=common - 1)
    curves = [(folder / "curve.jsonl").read_text().splitlines() for folder in (output, unbroken)]
    assert curves[0][:common] == curves[1][:common]
    steps = [read_step(folder / f"step_{common}") for folder in (output, unbroken)]
    assert steps[0].checkpoint.digest == steps[1].checkpoint.digest
    assert steps[0].record.measurements == steps[1].record.measurements
    for key, value in steps[1].state.items():
        assert torch.equal(steps[0].state[key], value), key


def test_signals_that_the_shell_ignores_stay_ignored(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    # As under nohup, started in the background by a script.
    process = start(data, output, *SIZES, *RECIPE, ignored=(signal.SIGINT, signal.SIGHUP))
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    assert signalled(process, output, *numbers) == told(output)
    assert process.returncode == 143
