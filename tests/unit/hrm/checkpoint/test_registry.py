"""The registry: the way back, what a reader refuses, and two writers at once."""

import fcntl
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hrm.checkpoint import CheckpointError, find_checkpoint, open_checkpoint
from hrm.checkpoint import names as checkpoint_names
from hrm.checkpoint.checkpoint import PromotedState, promoted_state
from hrm.checkpoint.names import check_unpromoted, path_in
from hrm.checkpoint.registry import (
    REGISTRY,
    Action,
    Event,
    Promoted,
    PromotionFigures,
    Registry,
    RegistryError,
    read_registry,
    record_event,
)
from schemas import HaltedBy, SQEHRMError
from tests.support.checkpoints import saved


def promoted(name: str, digest: str = "a") -> Promoted:
    return Promoted(name=name, path=name, digest=digest * 64)


def event(action: Action, new: Promoted, old: Promoted | None) -> Event:
    figures = PromotionFigures(
        halting=HaltedBy.Q, pairs=4, both=2, only_old=1, only_new=1, neither=0, unknown=1
    )
    return Event(
        time=datetime.now(UTC).replace(microsecond=0),
        action=action,
        checkpoint=new,
        replaced=old,
        compared_with=old,
        decision="nothing lost",
        figures=(figures,),
    )


def record(folder: Path, *steps: str) -> Registry:
    """Record promotions (`a`) and rollbacks (`-a`), one after the other."""
    for step in steps:
        before = read_registry(folder)
        action = Action.ROLLBACK if step.startswith("-") else Action.PROMOTE
        new = promoted(step.removeprefix("-"))
        record_event(folder, event(action, new, None if before is None else before.current))
    registry = read_registry(folder)
    assert registry is not None
    return registry


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(SQEHRMError) as caught:
        act()
    assert str(caught.value).isprintable()
    return str(caught.value)


# The way back.


@pytest.mark.parametrize(
    ("steps", "chain"),
    [
        ("a", "a"),
        ("a b c", "a b c"),
        ("a b c -b", "a b"),
        ("a b c -b -a", "a"),
        ("a b c -a", "a"),
        ("a b -a c", "a c"),
        ("a b a b -a", "a b a"),
        ("a b a b -a -b", "a b"),
    ],
)
def test_a_rollback_undoes_promotions_and_the_next_leads_further_back(
    tmp_path: Path, steps: str, chain: str
) -> None:
    registry = record(tmp_path, *steps.split())
    assert [each.name for each in registry.chain] == chain.split()
    assert registry.current == registry.chain[-1]
    assert len(registry.history) == len(steps.split())


def test_the_way_back_leads_over_promotions_in_force_alone(tmp_path: Path) -> None:
    registry = record(tmp_path, "a", "b", "c", "-b", "d")
    assert registry.before_current().name == "b"
    assert registry.before_current("a").name == "a"
    assert refused(lambda: registry.before_current("c")) == (
        "no promotion of 'c' before d (aaaaaaaaaaaa): go back to b, a, or promote it"
    )
    assert "d (aaaaaaaaaaaa): go back to b, a" in refused(lambda: registry.before_current("d"))


def test_the_first_promotion_has_no_way_back(tmp_path: Path) -> None:
    registry = record(tmp_path, "a", "b", "-a")
    assert refused(registry.before_current) == (
        "a (aaaaaaaaaaaa) is the first promotion: nothing to go back to: promote another"
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    registry = record(tmp_path, "a", "b")
    assert read_registry(tmp_path) == registry
    assert registry.history[1].figures[0].lost == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f".{REGISTRY}.lock",
        REGISTRY,
    ]
    assert read_registry(tmp_path / "none") is None


# Edited by hand.


EDITS: list[tuple[Callable[[Any], object], str]] = [
    (lambda content: content.update(format_version=2), "format_version: Input should be 1"),
    (lambda content: content.pop("current"), "current: Field required"),
    (lambda content: content.update(history=[]), "history: Tuple should have at least 1 item"),
    (lambda content: content["current"].update(name="a"), "current: not the checkpoint of the"),
    (lambda content: content["history"].pop(0), "history.0.replaced: not what was current before"),
    (
        lambda content: content["history"][1].update(action="rollback"),
        "history.1.checkpoint: not promoted before, so no way back",
    ),
    (lambda content: content["history"][0].update(time="today"), "history.0.time: "),
    (lambda content: content["history"][0].update(time="2026-01-01T00:00:00"), "history.0.time: "),
    (lambda content: content["history"][1].update(decision=""), "history.1.decision: "),
    (lambda content: content["current"].update(digest="A"), "current.digest: String should match"),
    (lambda content: content["current"].update(path="../b"), "current.path: leads out of the"),
    (lambda content: content["current"].update(path="/b"), "current.path: leads out of the"),
    (lambda content: content["current"].update(name="a\nb"), "current.name: has characters that"),
    (lambda content: content["current"].update(path=""), "current.path: String should have"),
    (lambda content: content.update(note="mine"), "unknown field 'note'"),
    (
        lambda content: content["history"][0]["figures"][0].update(both=3),
        "history.0.figures.0: pairs: not the sum",
    ),
    (
        lambda content: content["history"][0]["figures"][0].update(unknown=3),
        "history.0.figures.0: unknown: more than both",
    ),
]


@pytest.mark.parametrize(("edit", "problem"), EDITS)
def test_an_edit_that_is_wrong_is_named_with_its_field(
    tmp_path: Path, edit: Callable[[Any], object], problem: str
) -> None:
    record(tmp_path, "a", "b")
    file = tmp_path / REGISTRY
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    line = refused(lambda: find_checkpoint("current", tmp_path))
    assert line.startswith(f"{file}: {problem}")
    assert line.endswith("correct it, or restore the file; without it, nothing is promoted")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00", '{"format_version": 1'])
def test_what_is_no_registry_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / REGISTRY).write_text(content)
    assert refused(lambda: read_registry(tmp_path)).startswith(f"{tmp_path / REGISTRY}: ")


def test_a_registry_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / REGISTRY).mkdir()
    assert "cannot be read: Is a directory" in refused(lambda: read_registry(tmp_path))


# Two writers.


def test_of_two_promotions_over_the_same_checkpoint_one_is_refused(tmp_path: Path) -> None:
    first = record(tmp_path, "a").current
    outcomes: list[str] = []

    def promote(name: str) -> None:
        try:
            record_event(tmp_path, event(Action.PROMOTE, promoted(name), first))
            outcomes.append(name)
        except RegistryError as error:
            outcomes.append(str(error))

    with (tmp_path / f".{REGISTRY}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        writers = [threading.Thread(target=promote, args=(name,)) for name in ("b", "c")]
        for writer in writers:
            writer.start()
        assert not outcomes, "both wait for the lock"
        fcntl.flock(lock, fcntl.LOCK_UN)
    for writer in writers:
        writer.join(30)
    registry = read_registry(tmp_path)
    assert registry is not None
    assert len(registry.history) == 2
    winner = registry.current
    assert sorted(outcomes) == sorted(
        [
            winner.name,
            f"{tmp_path / REGISTRY}: {winner} has become current meanwhile: run the command again",
        ]
    )


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    line = refused(lambda: record(tmp_path / "none", "a"))
    assert line == (
        f"{tmp_path / 'none' / REGISTRY}: cannot be written (No such file or directory): name a "
        "checkpoint folder that can, in SQE_CHECKPOINT_DIR"
    )


# Looking up `current`.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder, in which `mine` is current."""
    folder = tmp_path / "checkpoints"
    checkpoint = open_checkpoint(str(saved(folder / "mine")), folder)
    entry = Promoted(name="mine", path="mine", digest=checkpoint.digest)
    record_event(folder, event(Action.PROMOTE, entry, None))
    return folder


def test_current_is_the_promoted_checkpoint_under_its_own_name(folder: Path) -> None:
    assert find_checkpoint("current", folder) == folder / "mine"
    assert open_checkpoint("current", folder).name == "mine"


def test_nothing_is_current_until_something_is_promoted(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        assert refused(partial(find_checkpoint, "current", folder)) == (
            f"nothing is promoted in {folder}, so there is no current checkpoint: promote one with "
            "sqe-hrm checkpoint promote NAME, or name one"
        )


def test_a_folder_called_current_counts_only_without_a_registry(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "other" / "current").mkdir(parents=True)
    assert find_checkpoint("current", tmp_path / "other") == tmp_path / "other" / "current"
    (folder / "current").mkdir()
    assert refused(lambda: find_checkpoint("current", folder)) == (
        f"{folder / 'current'}: has the name of what {folder / REGISTRY} says: rename it, or name "
        "it by this path"
    )


def test_a_promoted_checkpoint_that_is_gone_is_named(folder: Path) -> None:
    current = read_registry(folder)
    assert current is not None
    assert promoted_state(current.current, folder) is PromotedState.KEPT
    (folder / "mine").rename(folder / "moved")
    line = refused(lambda: find_checkpoint("current", folder))
    assert line == (
        f"{folder / 'mine'}: gone, but {current.current} is current: restore it, go back with "
        "sqe-hrm checkpoint rollback, or promote another with --over"
    )
    assert promoted_state(current.current, folder) is PromotedState.GONE


def test_a_promoted_checkpoint_that_was_trained_over_is_refused(folder: Path) -> None:
    registry = read_registry(folder)
    assert registry is not None
    config = folder / "mine" / "config.json"
    content = json.loads(config.read_text())
    content["conversion"]["puzzle_space"] = 4
    config.write_text(json.dumps(content))
    held = open_checkpoint("mine", folder).digest[:12]
    for damaged in (False, True):
        assert refused(partial(open_checkpoint, "current", folder, damaged=damaged)) == (
            f"{folder / 'mine'}: holds {held}, but {registry.current} was promoted: restore it, go "
            "back with sqe-hrm checkpoint rollback, or promote another with --over"
        )
    assert promoted_state(registry.current, folder) is PromotedState.CHANGED
    (folder / "mine" / "model.safetensors").write_bytes(b"damaged")
    assert promoted_state(registry.current, folder) is PromotedState.UNREADABLE


def test_a_shipped_checkpoint_can_be_current(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "shipped"
    digest = open_checkpoint(str(saved(shipped / "demo")), folder).digest
    monkeypatch.setattr(checkpoint_names, "SHIPPED", shipped)
    assert path_in(shipped / "demo", folder) == "demo"
    entry = Promoted(name="demo", path="demo", digest=digest)
    registry = read_registry(folder)
    assert registry is not None
    record_event(folder, event(Action.PROMOTE, entry, registry.current))
    assert open_checkpoint("current", folder).path.parent == shipped / "demo"


def test_only_what_is_in_the_checkpoint_folder_has_a_path_for_everybody(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    assert path_in(Path("checkpoints/mine"), folder) == "mine"
    assert path_in(folder / "run" / "step_5", Path("link")) == "run/step_5"
    for outside in (tmp_path / "mine", folder):
        with pytest.raises(
            CheckpointError, match=r"not in the checkpoint folder .*: copy it there"
        ):
            path_in(outside, folder)


def test_nothing_is_trained_over_a_promoted_checkpoint(folder: Path) -> None:
    check_unpromoted(folder / "next", folder)
    check_unpromoted(folder / "mine" / "deeper", folder)
    assert refused(lambda: check_unpromoted(folder / "mine", folder)).startswith(
        f"{folder / 'mine'}: holds mine ("
    )
