"""Holds `sqe-hrm checkpoint promote`, `rollback` and `history` to their words."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hrm.checkpoint.names import SHIPPED
from hrm.checkpoint.registry import REGISTRY
from hrm.checkpoint.solved import ACCEPTED_PAIRS
from hrm.data.config import PuzzlePolicy
from tests.support.checkpoints import SHA256
from tests.support.commands import refusal
from tests.support.evaluations import write_jsonl
from tests.support.promotions import EARLY, LATE, saved_with, solved_by
from worker.cli.commands.checkpoint import command

HELD = solved_by(EARLY, 14)
OTHER = {**EARLY, "q_head.bias": EARLY["q_head.bias"] + 1}
"""Other weights that answer alike."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint folder, with `first`, `second` (holds more) and `late` (answers otherwise)."""
    folder = tmp_path / "checkpoints"
    monkeypatch.setenv("SQE_CHECKPOINT_DIR", str(folder))
    monkeypatch.chdir(tmp_path)
    saved_with(folder / "first", OTHER, HELD[:-3])
    saved_with(folder / "second", EARLY, HELD)
    saved_with(folder / "late", LATE, HELD)
    return folder


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result
    assert max(map(len, result.stdout.splitlines())) <= 100
    return result.stdout


def refused(*arguments: str | Path) -> str:
    return refusal(call(*arguments))


def registry(folder: Path) -> Any:  # noqa: ANN401
    return json.loads((folder / REGISTRY).read_text())


def digest(folder: Path, name: str) -> str:
    found: str = next(
        each["checkpoint"]["digest"][:12]
        for each in registry(folder)["history"]
        if each["checkpoint"]["name"] == name
    )
    return found


# Promotion.


def test_the_first_promotion_measures_the_new_one_alone(folder: Path) -> None:
    shown = done("promote", "first")
    own = digest(folder, "first")
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0] == f"first ({own}), measured alone"
    assert f"max_steps {len(HELD) - 3} {len(HELD) - 3}" in lines
    assert lines[-2:] == ["first promotion", f"current: first ({own})"]
    (event,) = registry(folder)["history"]
    assert (event["action"], event["decision"], event["replaced"]) == (
        "promote",
        "first promotion",
        None,
    )
    assert event["time"].endswith("Z")


def test_a_promotion_that_loses_nothing_says_what_was_current(folder: Path) -> None:
    done("promote", "first")
    shown = done("promote", folder / "second")
    old, new = digest(folder, "first"), digest(folder, "second")
    assert shown.startswith(f"first ({old}) → second ({new})\n")
    assert shown.endswith(f"nothing lost\ncurrent: second ({new}), was first ({old})\n")
    assert registry(folder)["current"]["name"] == "second"
    assert registry(folder)["history"][1]["figures"][0]["both"] == len(HELD) - 3


def test_a_promotion_that_loses_pairs_is_refused_with_their_list(folder: Path) -> None:
    many = solved_by(EARLY, 24)
    for name, state in (("second", EARLY), ("late", LATE)):
        saved_with(folder / name, state, many)
    done("promote", "second")
    before = registry(folder)
    result = call("promote", "late")
    report = json.loads(call("promote", "late", "--json").stdout)
    count = len(report["lost"])
    assert refusal(result) == (
        f"late is not promoted, because it loses {count} pairs of second "
        f"({digest(folder, 'second')}): train it from there with --init-from, or promote it all "
        "the same with --accept-losses"
    )
    assert count > 20
    assert f"Lost: {count}, the first 20 of them: --json has all" in result.stdout
    listed = [line for line in result.stdout.splitlines() if "not solved" in line]
    assert [line.split()[0] for line in listed] == [
        each["pair"][:12] for each in report["lost"][:20]
    ]
    assert "prompt" not in result.stdout, "only tokens are known"
    assert report["promoted"] is False
    assert registry(folder) == before


def test_a_person_may_accept_losses(folder: Path) -> None:
    done("promote", "second")
    shown = done("promote", "late", "--accept-losses")
    (first, event) = registry(folder)["history"]
    lost = event["figures"][0]["only_old"]
    assert f"accepted loss of {lost} pairs: --accept-losses\ncurrent: late (" in shown
    assert event["decision"] == f"accepted loss of {lost} pairs: --accept-losses"
    assert event["compared_with"] == event["replaced"] == first["checkpoint"]


def test_only_the_rule_that_is_asked_for_counts() -> None:
    done("promote", "first")
    report = json.loads(done("promote", "second", "--halting", "q", "--json"))
    assert [each["halting"] for each in report["figures"]] == ["q"]


def test_lost_messages_of_a_file_are_named_by_line_and_prompt(folder: Path, tmp_path: Path) -> None:
    for name in ("sqe-demo", "sqe-demo-600"):
        shutil.copytree(SHIPPED / name, folder / name)
        # Without a record, the messages of the file are all there is.
        for file in ("training_pairs.json", ACCEPTED_PAIRS, "figures.json", "precision.json"):
            (folder / name / file).unlink(missing_ok=True)
    lines = (SHIPPED / "sqe-demo" / "messages.jsonl").read_text().splitlines()
    data = tmp_path / "two.jsonl"
    data.write_text(f"{lines[0]}\n{lines[64]}\n")
    assert "sqe-demo holds no accepted pairs: give the accepted messages with --data-path" in (
        refused("promote", "sqe-demo-600", "--over", "sqe-demo")
    )
    result = call(
        "promote", "sqe-demo-600", "--over", "sqe-demo", "--data-path", data, "--halting", "q"
    )
    assert "because it loses 1 pair of sqe-demo (" in refusal(result)
    (row,) = (line for line in result.stdout.splitlines() if "not solved" in line)
    prompt = json.loads(lines[64])["prompt"]
    assert f"  2  {prompt[:39]}…" in row.rstrip()


def test_checkpoints_of_other_conversions_are_compared_on_a_file(
    folder: Path, tmp_path: Path
) -> None:
    conversion = SHA256.model_copy(update={"puzzle_policy": PuzzlePolicy.PROMPT_HASH})
    saved_with(folder / "other", EARLY, HELD, conversion)
    done("promote", "second")
    assert refused("promote", "other") == (
        "other converts messages otherwise than second, so the pairs of second say nothing to it: "
        "give the accepted messages with --data-path"
    )
    data = write_jsonl(tmp_path / "part.jsonl", *(each.model_dump() for each in HELD[:5]))
    report = json.loads(call("promote", "other", "--accept-losses", "--json").stdout)
    assert (report["decision"], report["figures"]) == ("not compared: --accept-losses", [])
    done("rollback")
    result = call("promote", "other", "--data-path", data)
    missing = len(HELD) - 5
    assert f"it loses {missing} pairs of second (" in refusal(result)
    assert "give a file that has all of them" in refusal(result)
    assert f"Not in {data}: {missing} of the pairs" in " ".join(result.stdout.split())
    data = write_jsonl(tmp_path / "all.jsonl", *(each.model_dump() for each in HELD))
    shown = " ".join(done("promote", "other", "--data-path", data).split())
    assert "other converts messages otherwise than second: puzzle ids and tokens in the" in shown


def test_over_names_what_is_replaced(folder: Path) -> None:
    report = json.loads(done("promote", "second", "--over", "first", "--json"))
    assert (report["compared_with"]["name"], report["replaced"]) == ("first", None)
    assert "--over first: second (" in refused("promote", "late", "--over", "first")
    assert registry(folder)["current"]["name"] == "second"


def test_a_current_checkpoint_that_is_gone_is_no_reason_to_compare_with_nothing(
    folder: Path,
) -> None:
    done("promote", "first")
    shutil.rmtree(folder / "first")
    assert "gone, but first (" in refused("promote", "second")
    assert "--over second: is second itself: name an older one" in (
        refused("promote", "second", "--over", "second")
    )
    report = json.loads(call("promote", "late", "--over", "second", "--json").stdout)
    assert (report["compared_with"]["name"], report["promoted"]) == ("second", False)
    report = json.loads(done("promote", "second", "--accept-losses", "--json"))
    assert (report["decision"], report["compared_with"], report["figures"]) == (
        "not compared: --accept-losses",
        None,
        [],
    )


def test_what_cannot_be_promoted_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    assert "no checkpoint 'third'" in refused("promote", "third")
    saved_with(tmp_path / "outside", EARLY, HELD)
    assert "outside: not in the checkpoint folder" in refused("promote", tmp_path / "outside")
    saved_with(folder / "run" / "current", EARLY, HELD)
    assert "a checkpoint called current cannot be promoted: rename it" in (
        refused("promote", folder / "run" / "current")
    )
    done("promote", "first")
    assert refused("promote", "first") == (
        f"first ({digest(folder, 'first')}) is current already: name another checkpoint"
    )
    assert "is current already" in refused("promote", "current")
    for text, problem in (("", "nothing to compare on"), ("{}\n", "line 1: ")):
        (tmp_path / "data.jsonl").write_text(text)
        (folder / "first" / ACCEPTED_PAIRS).unlink(missing_ok=True)
        (folder / "first" / "training_pairs.json").unlink(missing_ok=True)
        assert problem in refused("promote", "second", "--data-path", tmp_path / "data.jsonl")
    (folder / REGISTRY).write_text("{")
    assert str(folder / REGISTRY) in refused("promote", "second")


def test_a_damaged_file_of_pairs_is_refused(folder: Path) -> None:
    done("promote", "first")
    (folder / "first" / ACCEPTED_PAIRS).write_bytes(b"damaged")
    assert str(folder / "first" / ACCEPTED_PAIRS) in refused("promote", "second")


# Rollback and history.


@pytest.fixture
def promoted(folder: Path) -> Path:
    """The checkpoint folder after `first`, `second` and `late` were promoted."""
    for name in ("first", "second", "late"):
        done("promote", name, "--accept-losses", "--halting", "q")
    return folder


def test_rollbacks_lead_back_one_promotion_after_the_other(promoted: Path) -> None:
    names = {name: f"{name} ({digest(promoted, name)})" for name in ("first", "second", "late")}
    assert done("rollback") == f"current: {names['second']}, was {names['late']}\n"
    report = json.loads(done("rollback", "--json"))
    assert (report["checkpoint"]["name"], report["replaced"]["name"]) == ("first", "second")
    assert "is the first promotion: nothing to go back to" in refused("rollback")
    done("promote", "second")
    assert done("rollback").startswith("current: first (")


@pytest.mark.usefixtures("promoted")
def test_a_rollback_to_a_name_skips_those_between() -> None:
    assert "no promotion of 'none' before late (" in refused("rollback", "--to", "none")
    assert done("rollback", "--to", "first").startswith("current: first (")
    assert "nothing to go back to" in refused("rollback", "--to", "second")


def test_a_rollback_needs_the_weights_that_were_promoted(promoted: Path) -> None:
    saved_with(promoted / "second", LATE, HELD)
    line = f"{promoted / 'second'}: changed since second ({digest(promoted, 'second')}) was"
    assert line in refused("rollback")
    shutil.rmtree(promoted / "second")
    assert f"{promoted / 'second'}: gone since " in refused("rollback")
    assert done("rollback", "--to", "first").startswith("current: first (")


def test_a_current_checkpoint_that_is_gone_can_be_rolled_back(promoted: Path) -> None:
    shutil.rmtree(promoted / "late")
    assert done("rollback").startswith("current: second (")


def test_nothing_promoted_is_said_in_one_line() -> None:
    for name in ("rollback", "history"):
        assert refused(name).startswith("nothing is promoted in ")


def test_the_history_shows_all_events_and_what_is_gone_or_changed(promoted: Path) -> None:
    done("rollback")
    shutil.rmtree(promoted / "late")
    saved_with(promoted / "first", LATE, HELD)
    text = done("history")
    rows = [line.split() for line in text.splitlines() if " promote " in line or "rollback" in line]
    assert [(row[0], row[2]) for row in rows] == [
        ("first", "promote"),
        ("second", "promote"),
        ("late", "promote"),
        ("second", "rollback"),
    ]
    assert [row[1] for row in rows[:3]] == [
        digest(promoted, name) for name in ("first", "second", "late")
    ]
    assert [row[-1] for row in rows] == ["changed", "lost", "gone", "current"]
    assert rows[2][5:7] == ["accepted", "loss"]
    figures = text.partition("Solved of the same pairs")[2]
    assert f"first → second  q           {len(HELD) - 3}" in figures
    content = json.loads(done("history", "--json"))
    assert content["current"]["name"] == "second"
    assert {each["checkpoint"]["name"]: each["state"] for each in content["states"]} == {
        "first": "changed",
        "second": "kept",
        "late": "gone",
    }


@pytest.mark.usefixtures("promoted")
def test_other_commands_take_current_and_show_its_own_name() -> None:
    inspected = json.loads(call("inspect", "current", "--json").stdout)
    assert inspected["name"] == "late"
    assert "late → first" in done("compare", "current", "first")


def test_the_checkpoint_is_unchanged_by_its_promotion(folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in (folder / "first").iterdir()}
    done("promote", "first")
    assert {file.name: file.read_bytes() for file in (folder / "first").iterdir()} == before
