"""The demo as a newcomer runs it, but shorter."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import wait_for


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "worker", "demo", *options],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("SQE_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_every_message_has_one_outcome_and_the_counts_agree(tmp_path: Path) -> None:
    demo = start(tmp_path, "--seconds", "8", "--malformed", "0.2")
    output, errors = demo.communicate(timeout=120)
    assert demo.returncode == 0, errors
    assert "all counts agree" in output
    agent = re.search(r"the agent +(\d+) +(\d+) +(\d+)", output)
    worker = re.search(r"worker's /metrics +(\d+) +(\d+)", output)
    monitor = re.search(r"monitor's /metrics +(\d+)", output)
    assert agent is not None
    assert worker is not None
    assert monitor is not None
    sent, verdicts, letters = map(int, agent.groups())
    assert sent == verdicts + letters
    assert (str(verdicts), str(letters)) == worker.groups()
    assert int(monitor[1]) == verdicts
    solved = re.search(r"known +(\d+)/(\d+) +100\.0 %", output)
    assert solved is not None
    assert not list((tmp_path / ".sqe").glob("demo-*/")), "the demo's Redis left its data behind"


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        ("nonesuch", "/checkpoints does not exist; "),
        ("sqe-demo-600", "/sqe-demo-600/messages.jsonl: give accepted messages with --data-path"),
    ],
)
def test_a_demo_without_checkpoint_or_messages_starts_nothing(
    tmp_path: Path, checkpoint: str, said: str
) -> None:
    demo = start(tmp_path, "--checkpoint", checkpoint)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode != 0
    assert said in errors.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_without_an_end_several_workers_run_until_ctrl_c(tmp_path: Path) -> None:
    demo = start(tmp_path, "--forever", "--devices", "cpux2")
    assert demo.stdout is not None
    first = demo.stdout.readline()
    assert "workers with sqe-demo on cpux2" in first
    assert "/metrics" in first
    assert "answered" in demo.stdout.readline()
    demo.send_signal(signal.SIGINT)
    output, errors = demo.communicate(timeout=60)
    assert demo.returncode == 0, errors
    assert "all counts agree" in output


def worker_of(demo: subprocess.Popen[str]) -> int:
    """Wait for the demo's line with the metrics' URL, and return its worker's process id."""
    assert demo.stdout is not None
    demo.stdout.readline()
    children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
    (worker,) = (
        int(child)
        for child in children
        if b"\0worker\0worker\0" in Path(f"/proc/{child}/cmdline").read_bytes()
    )
    return worker


def test_a_worker_that_dies_ends_the_demo_with_one_line(tmp_path: Path) -> None:
    demo = start(tmp_path, "--forever")
    os.kill(worker_of(demo), signal.SIGKILL)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert errors.startswith("sqe-hrm: error: the worker ended")
    assert errors.count("\n") == 1
    wait_for(lambda: not list((tmp_path / ".sqe").glob("demo-*/")), "the demo's data removed")


def test_a_demo_that_is_killed_takes_its_worker_with_it(tmp_path: Path) -> None:
    demo = start(tmp_path, "--forever")
    worker = worker_of(demo)
    demo.kill()
    demo.communicate()
    wait_for(lambda: not is_running(worker), "the worker gone", 60)


def is_running(process: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False
    return "State:\tZ" not in status
