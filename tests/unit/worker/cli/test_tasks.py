"""Tasks from the training file to the verdicts of `sqe-hrm evaluate`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hrm.data.config import ENOUGH_PROMPTS
from tests.benchmarks.corpus import TASKS, split
from worker.cli.main import cli

TINY = ("--hidden-size", "16", "--num-heads", "2", "--layers", "1", "--steps", "2")
NEW = TASKS[1].name
"""A task of which too few prompts are trained."""


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def write(path: Path, pairs: list[dict[str, str]]) -> Path:
    path.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint `m`, and a file of prompts of its tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    enough = split(TASKS[:1], fillings=ENOUGH_PROMPTS, unseen=9, seed=0)
    few = split(TASKS[1:2], fillings=12, unseen=9, seed=0)
    trained = [pair.fields for pair in enough.trained + few.trained]
    data = write(folder / "accepted.jsonl", trained)
    run("train", "--data-path", data, "--output", folder / "m", *TINY)
    other = {"task": "other", "prompt": "What is new?", "completion": "This."}
    unseen = [pair.fields for pair in enough.unseen[:4] + few.unseen[:3]]
    write(folder / "messages.jsonl", [*trained[:5], *unseen, other])
    return folder


def test_training_says_which_tasks_are_too_new(tmp_path: Path) -> None:
    (lonely,) = split(TASKS[:1], fillings=1, unseen=1, seed=0).trained
    data = write(tmp_path / "accepted.jsonl", [lonely.fields])
    arguments = ["train", "--data-path", str(data), "--output", str(tmp_path / "m"), *TINY]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[1] == (
        f"new prompts of a task are not judged before {ENOUGH_PROMPTS} prompts of it are trained: "
        f"{lonely.task} has 1"
    )
    # A new prompt of it is new, and its own is known.
    other = {**lonely.fields, "prompt": "Something else of the task."}
    messages = write(tmp_path / "messages.jsonl", [lonely.fields, other])
    report = json.loads(
        run("evaluate", "--checkpoint", tmp_path / "m", "--data-path", messages, "--json")
    )
    counts = {name: group["examples"] for name, group in report["by_match"].items()}
    assert counts == {"pair": 1, "near": 0, "puzzle": 0, "new": 1, "none": 0}


def test_inspect_shows_the_tasks_and_which_are_too_new(folder: Path) -> None:
    lines = [
        " ".join(line.split()) for line in run("checkpoint", "inspect", folder / "m").splitlines()
    ]
    assert f"{TASKS[0].name} 1,000 {ENOUGH_PROMPTS} are judged" in lines
    assert f"{NEW} 1,001 12 too new to judge" in lines


def test_evaluate_shows_the_figures_of_each_match_apart(folder: Path) -> None:
    arguments = ("evaluate", "--checkpoint", folder / "m", "--data-path", folder / "messages.jsonl")
    report = json.loads(run(*arguments, "--json"))
    counts = {name: figures["examples"] for name, figures in report["by_match"].items()}
    assert counts == {"pair": 5, "near": 0, "puzzle": 4, "new": 3, "none": 1}
    groups = [line.split()[:2] for line in run(*arguments).splitlines()]
    assert ["puzzle", "4"] in groups
    assert ["new", "3"] in groups
    assert ["near", "no"] not in groups
