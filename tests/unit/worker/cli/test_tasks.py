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
    """A folder with the checkpoints `m` and `n`, and a file of prompts of its tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    enough = split(TASKS[:1], fillings=ENOUGH_PROMPTS, unseen=9, seed=0)
    few = split(TASKS[1:2], fillings=12, unseen=9, seed=0)
    trained = [pair.fields for pair in enough.trained + few.trained]
    data = write(folder / "accepted.jsonl", trained)
    run("train", "--data-path", data, "--output", folder / "m", *TINY)
    run("train", "--data-path", data, "--output", folder / "n", *TINY, "--seed", "1")
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
    assert ["none", "1"] in groups


def rows(printed: str, title: str) -> list[list[str]]:
    """The words of each line of the part of `printed` below `title`, without its headings."""
    part = printed.partition(f"\n{title}\n")[2].partition("\n\n")[0]
    return [line.split() for line in part.partition("─\n")[2].splitlines()]


def test_baselines_are_apart_too(folder: Path) -> None:
    messages, trained = folder / "messages.jsonl", folder / "accepted.jsonl"
    of_m = ("evaluate", "--checkpoint", folder / "m", "--data-path", messages)
    arguments = (*of_m, "--train-data", trained)
    report = json.loads(run(*arguments, "--json"))
    for baseline in report["baselines"]:
        counts = {name: group["examples"] for name, group in baseline["by_match"].items()}
        assert counts == {"pair": 5, "near": 0, "puzzle": 4, "new": 3, "none": 1}
    nearest = report["baselines"][-1]
    assert nearest["by_match"]["pair"]["solved"]["count"] == 5
    assert nearest["by_match"]["puzzle"]["solved"]["count"] == 0
    title = "The same on unknown prompts, by what was trained of them"
    printed = {row[0]: row[1:] for row in rows(run(*arguments), title)}
    assert printed["m"][::3] == ["0/4", "0/3", "0/1"]
    assert printed["lookup"][::3] == ["0/4", "0/3", "0/1"]


def test_a_comparison_tells_them_apart(folder: Path) -> None:
    compare = ("checkpoint", "compare", folder / "m", folder / "n", "--halting", "q", "--data-path")
    arguments = (*compare, folder / "messages.jsonl")
    for figures in json.loads(run(*arguments, "--json"))["measured"]:
        counts = {name: share["of"] for name, share in figures["solved_by_match"].items()}
        assert counts == {"pair": 5, "puzzle": 4, "new": 3, "none": 1}
        assert (
            sum(share["count"] for share in figures["solved_by_match"].values())
            == (figures["solved"]["count"])
        )
    printed = run(*arguments)
    assert rows(printed, "Solved, by what was trained of the prompts") == [
        [name, "q", "0/5", "0/4", "0/3", "0/1"] for name in ("m", "n")
    ]
    of_known = run(*compare, folder / "accepted.jsonl")
    assert "by what was trained" not in of_known


def test_an_ensemble_tells_them_apart(folder: Path) -> None:
    arguments = ("ensemble", "--checkpoints", folder / "m", folder / "n", "--halting", "q")
    printed = run(*arguments, "--data-path", folder / "messages.jsonl")
    found = rows(printed, "By what was trained of the prompts")
    assert [row[-4:] for row in found] == [["0/5", "0/4", "0/3", "0/1"]] * 3
    assert [row[0] for row in found] == ["m", "n", "ensemble"]


def test_a_drift_test_counts_what_it_leaves_out(folder: Path) -> None:
    arguments = ("drift-test", folder / "messages.jsonl", "--checkpoint", folder / "m")
    report = json.loads(run(*arguments, "--json"))
    assert report["lines"]["unknown"] == 8
    assert report["lines"]["unknown_by_match"] == {"puzzle": 4, "new": 3, "none": 1}
    assert "8 unknown (puzzle 4, new 3, none 1)" in run(*arguments)
